"""A worker without ComfyUI, for tests of the engine alone. What a row is called says what it does to its worker."""
import os
import signal
import time

import ray

GIGABYTE = 1e9


class Stub:
    def __init__(self, seen):
        self.seen, self.rows, self.memory = seen, 0, GIGABYTE

    def __call__(self, name):
        with open(self.seen, "a") as file:
            file.write(f"{os.getpid()} {name}\n")
        self.rows += 1
        if name.startswith("poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("raises"):
            raise RuntimeError("a mistake")
        if name.startswith("grows"):
            self.memory += 5 * GIGABYTE
        if name.startswith("slow"):
            time.sleep(0.3)
        huge = name.startswith("huge") or name.startswith("large") and self.rows > 1
        return {"error": "Allocation on device" * huge, "exception": "OutOfMemoryError" * huge, "memory": self.memory,
                "node": ray.get_runtime_context().get_node_id()}


class Unable:
    def __init__(self):
        raise RuntimeError("no ComfyUI here")
