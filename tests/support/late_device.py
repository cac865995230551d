"""A device whose streams run late, in an order that a seed chooses: what `torch.cuda` promises, and no more."""

import random
from concurrent.futures import Future


class Device:
    """Streams, events and a thread. An operation runs after those before it in its stream, and when all that
    the stream waits for has happened; nothing else is certain."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.main = self.current = self.Stream()
        self.streams = [self.main]

    class Stream:
        def __init__(self):
            self.queue, self.done = [], 0

    def order(self, work) -> None:
        """Appends to the current stream."""
        self.current.queue.append((lambda: True, work))

    def run(self, until=lambda: False, share: float = 1.0) -> None:
        """Runs operations that may run, one after another, until none is left; a share of them with `share`."""
        while not until() and self.random.random() <= share:
            ready = [s for s in self.streams if s.done < len(s.queue) and s.queue[s.done][0]()]
            if not ready:
                break
            stream = self.random.choice(ready)
            stream.queue[stream.done][1]()
            stream.done += 1

    @property
    def api(self):
        """What stands for `torch.cuda`."""
        device = self

        class Event:
            reached = staticmethod(lambda: True)

            def record(self):
                stream, n = device.current, len(device.current.queue)
                self.reached = lambda: stream.done >= n

            def wait(self):
                device.current.queue.append((self.reached, lambda: None))

            def synchronize(self):
                device.run(until=self.reached)
                assert self.reached(), "would wait for ever"

        class Api:
            @staticmethod
            def Stream():
                device.streams.append(device.Stream())
                return device.streams[-1]

            class stream:
                def __init__(self, stream):
                    self.stream = stream

                def __enter__(self):
                    device.current = self.stream

                def __exit__(self, *error):
                    device.current = device.main

        Api.Event = Event
        return Api


class Thread:
    """Does what it is given at once, or when its result is asked for."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def submit(self, work, *arguments):
        class Later(Future):
            def result(self, timeout=None):
                if not self.done():
                    self.set_result(work(*arguments))
                return super().result()

        later = Later()
        if self.random.random() < 0.5:
            later.result()
        return later
