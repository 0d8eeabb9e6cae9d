"""Cases of any settings, each made once."""
from runs import Case, kept


@kept
def case_of(**kwargs):
    return Case(**kwargs)
