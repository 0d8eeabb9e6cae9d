"""A node pack whose one node fails as it is told: it raises, or ends the whole process."""
import os


class Fault:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "what": (["nothing", "raise", "exit"],)}}

    def run(self, image, what):
        if what == "exit":
            os._exit(9)
        if what == "raise":
            raise ValueError("the word zebra stands in no prompt: choose one that does")
        return (image,)


NODE_CLASS_MAPPINGS = {"BatchTestFault": Fault}
