"""How far a run is: its rate, how long it will last, failures, and what became of its workers."""
import sys
import time

EVERY = 15.0  # seconds between two lines where no terminal shows one that changes


class Progress:
    """total: rows to do. before: rows that an earlier run did."""

    def __init__(self, total: int, before: int):
        self.total, self.before, self.out = total, before, sys.stdout
        self.done = self.failed = self.ended = 0
        self.begun = self.said = time.monotonic()
        self.width, self.workers = 0, {}

    def row(self, found: dict):
        self.done += 1
        self.failed += bool(found["error"])
        self.show()

    def worker(self, seat, words: str):
        """What became of a worker is a line of its own."""
        self.workers[seat.number] = words.partition(",")[0].partition(":")[0]
        self.ended += words.startswith("ended")
        self.say(f"worker {seat.number} {words}")

    def line(self) -> str:
        spent = max(time.monotonic() - self.begun, 1e-9)  # Windows' clock may not have moved
        left = (self.total - self.done) * spent / self.done if self.done else float("nan")
        ready = sum(words == "is ready" for words in self.workers.values())
        return (f"{self.before + self.done} of {self.before + self.total} rows, {self.failed} failed, "
                f"{60 * self.done / spent:.1f} a minute, {duration(left)} left; {ready} workers"
                + f", {self.ended} ended" * bool(self.ended))

    def show(self):
        if self.out.isatty():
            self.out.write("\r" + self.line().ljust(self.width))
            self.width = len(self.line())
        elif time.monotonic() > self.said + EVERY:
            self.say(self.line())
        self.out.flush()

    def say(self, text: str):
        self.out.write(("\r" if self.out.isatty() else "") + text.ljust(self.width) + "\n")
        self.width, self.said = 0, time.monotonic()
        self.out.flush()


def forecast(sample: list, groups: int, rows: int, workers: int) -> str:
    """What a run takes. sample: what some rows gave; of the last two the first began its group."""
    first, later = sample[-2:] if len(sample) > 1 else sample * 2
    spent = groups * first["seconds"] + (rows - groups) * later["seconds"]
    passes = groups * (first["evaluations"] or 0) + (rows - groups) * (later["evaluations"] or 0)
    size = rows * sum(len(data) for files in later["pictures"].values() for data in files)
    lines = [f"{rows} rows in {groups} groups, on {min(workers, groups)} workers"]
    if passes:
        lines.append(f"{passes} rows through the network: {first['evaluations']} for a group's first row, "
                     f"{later['evaluations']} for each other, {first['seconds'] / first['evaluations']:.4f} s each")
    lines += [f"{duration(spent / min(workers, groups))} on these workers ({duration(spent)} on one)",
              f"{size / 1e6:.1f} MB of pictures"]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    if seconds != seconds:
        return "unknown time"
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
