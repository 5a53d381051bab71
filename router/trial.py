"""Whether reading ahead pays: by trying, for all layers and for each; and how much may be read in vain.

Pure: told what tokens took and read. Knows nothing about who guesses what.
"""

from __future__ import annotations


class _Way:
    """Tokens that were computed one way.

    How many records a token wants is chance and changes its time more than any guess does. So waiting is taken for each
    record, and the rest for each token.
    """

    def __init__(self) -> None:
        self.records: list[int] = []
        self._computing: list[float] = []
        self._waited = 0.0

    def add(self, seconds: float, waited_sec: float, records: int) -> None:
        self.records.append(records)
        self._computing.append(seconds - waited_sec)
        self._waited += waited_sec

    def cost(self, records: float) -> float:
        """Seconds of a token that wants that many."""
        from statistics import median  # 2 ms, which a probe of the disk has spent already

        return median(self._computing) + records * self._waited / max(sum(self.records), 1)


class Trial:
    """Whether something pays, by trying: tokens with it and without it, in turns, then the faster way for a while.

    What speculative reads cost differs by disk in ways that no figure of it tells: one gives its idle time for nothing,
    another counts every byte against a quota. `losing`: the layers that waited clearly longer for a record with it;
    they go without until the next trial, though it pays for the others.
    """

    WARM_UP = 8  # tokens of a cold cache, which say nothing
    SPELL = 5  # tokens one way, then the other
    SPELLS = 6
    REST = 128  # tokens until the next trial; twice as many each time that nothing has changed
    MAX_REST = 1024
    MIN_RECORDS = 24  # of a layer each way, from which its waiting says something
    LOSS = 1.1  # times the wait for a record without it: less is chance

    def __init__(self) -> None:
        self.on = self._winner = True  # most guesses are right
        self._rest = self.REST
        self._left = self.WARM_UP  # tokens until the next trial begins
        self._ways = {True: _Way(), False: _Way()}
        self._layers: dict[bool, dict[int, tuple[float, int]]] = {True: {}, False: {}}
        self.losing: frozenset[int] = frozenset()

    def layer(self, number: int, waited_sec: float, records: int) -> None:
        """A layer of the token, the way that `on` says, wanted these records that weren't kept."""
        if records and self._left == 0:
            sec, before = self._layers[self.on].get(number, (0.0, 0))
            self._layers[self.on][number] = sec + waited_sec, before + records

    def token(self, seconds: float, waited_sec: float = 0.0, records: int = 0) -> None:
        """One took this long, the way that `on` said, `waited_sec` of it for the `records` that it wanted and that
        weren't kept. Decides about the next."""
        if self._left > 0:
            self._left -= 1
            if self._left == 0:  # all layers are tried
                self.losing = frozenset()
            return
        self._ways[self.on].add(seconds, waited_sec, records)
        wanted = [way.records for way in self._ways.values()]
        done = sum(map(len, wanted))
        if done % self.SPELL == 0:
            self.on = not self.on
        if done == self.SPELL * self.SPELLS:
            mean = sum(map(sum, wanted)) / done
            self.on = self._ways[True].cost(mean) <= self._ways[False].cost(mean)
            self._rest = min(2 * self._rest, self.MAX_REST) if self.on == self._winner else self.REST
            self._winner, self._left = self.on, self._rest
            self._ways = {True: _Way(), False: _Way()}
            self.losing = frozenset(filter(self._loses, self._layers[True]))
            self._layers = {True: {}, False: {}}

    def _loses(self, layer: int) -> bool:
        found = [self._layers[way].get(layer, (0.0, 0)) for way in (True, False)]
        if min(records for _, records in found) < self.MIN_RECORDS:
            return False
        with_it, without = (sec / records for sec, records in found)
        return with_it > self.LOSS * without


class IdleShare:
    """Whether guesses may still be read: what was read in vain lately may have taken SHARE of the time in which the
    disk had nothing certain to read. So guesses that are seldom right can't wear a disk out, nor keep it awake."""

    SHARE = 0.25
    KEEP = 0.99  # of what was before, at each token

    def __init__(self) -> None:
        self._idle_bytes = self._wasted_bytes = 0.0

    def token(self, seconds: float, bytes_per_sec: float, certain_bytes: int, wasted_bytes: int) -> None:
        """One token, on a disk of this speed: it read so much because it was wanted, and so much for nothing."""
        idle = max(seconds * bytes_per_sec - certain_bytes, 0.0)
        self._idle_bytes = self.KEEP * self._idle_bytes + idle
        self._wasted_bytes = self.KEEP * self._wasted_bytes + wasted_bytes

    @property
    def is_left(self) -> bool:
        return self._wasted_bytes <= self.SHARE * self._idle_bytes
