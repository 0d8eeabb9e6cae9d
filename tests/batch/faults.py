"""A node pack whose one node fails when it is told to."""


class Fault:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "what": (["nothing", "raise"],)}}

    def run(self, image, what):
        if what == "raise":
            raise ValueError("the word zebra stands in no prompt: choose one that does")
        return (image,)


NODE_CLASS_MAPPINGS = {"BatchTestFault": Fault}
