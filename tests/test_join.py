"""The join: every exposure is learned once, every outcome counts once, however polls are cut."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import Inconsistent
from stream.interaction_type import InteractionType
from stream.join import REMOVES_ITEM, REMOVES_USER, Arrivals, Joiner
from stream.join.columns import ARRIVALS
from stream.schemas import KINDS

WINDOW, IDLE = 10, 15
FACTUAL, EXPOSED, CONTROL, CONSUMED, CORRECTION, PREDICT, CLOSED = InteractionType


def record(kind, ts, user=0, item=0, slate=0, partition=0, kafka=None, value=math.nan, shown=True):
    return {
        "kind": KINDS.index(kind), "partition": partition, "user": user, "item": item,
        "slate": slate, "ts_ms": ts, "kafka_ts_ms": ts if kafka is None else kafka, "value": value,
        "position": 1 + ts % 3, "propensity": 1 / (2 + ts % 5), "show_probability": 0.75,
        "shown": shown,
    }  # fmt: skip


def impression(ts, slate=1, **more):
    return record("impression", ts, slate=slate, **more)


def click(ts, slate=0, **more):
    return record("click", ts, slate=slate, **more)


def rating(ts, value, slate=0, **more):
    return record("rating", ts, slate=slate, value=value, **more)


def removal(user=-1, item=-1):
    kind = REMOVES_ITEM if user < 0 else REMOVES_USER
    return record("user", 0, user, item) | {"kind": kind}


def arrivals(records):
    return Arrivals(
        **{name: np.array([r[name] for r in records], dtype) for name, dtype in ARRIVALS.items()}
    )


def prediction(user, item, ts_ms):
    treated = np.float32((31 * user + 7 * item + ts_ms) % 1009)
    return treated, treated + np.float32(0.5)


def rows_of(columns, names, *also):
    """The columns as tuples, None for nan."""
    held = [getattr(columns, name).tolist() for name in names] + [a.tolist() for a in also]
    return [tuple(None if x != x else x for x in row) for row in zip(*held, strict=True)]


TOLD = ("user", "item", "outcome_is_click", "label", "role", "propensity", "position", "ts_ms",
        "counts")  # fmt: skip
SHUT = ("user", "item", "shown", "click", "rating", "propensity", "show_probability", "position",
        "ts_ms", "first")  # fmt: skip


class Run:
    """A joiner, the interactions and closed windows that it told, and their predictions."""

    def __init__(self, **bounds):
        self.bounds = {"window_ms": WINDOW, "idle_ms": IDLE} | bounds
        self.joiner = Joiner(**self.bounds)
        self.told, self.shut, self.seen = [], [], 0

    def take(self, joined, size):
        treated, control = prediction(joined.user, joined.item, joined.ts_ms)
        self.joiner.note(joined, treated, control)
        closed = joined.closed
        by, now = closed.predicted_by, closed.predicted_by >= 0
        assert (joined.role[by[now]] == PREDICT).all()
        assert np.isnan(closed.treated[now]).all()
        self.told += rows_of(
            joined, TOLD, np.where(joined.source < 0, -1, joined.source + self.seen)
        )
        self.shut += rows_of(
            closed, SHUT,
            np.where(now, treated[by], closed.treated) if size else closed.treated,
            np.where(now, control[by], closed.control) if size else closed.control,
        )  # fmt: skip
        self.seen += size
        return joined

    def poll(self, *records, pending=()):
        """Join one poll; return (role, label, counts) of what it told."""
        joined = self.take(self.joiner.join(arrivals(records), pending), len(records))
        return rows_of(joined, ("role", "label", "counts"))

    def roles(self, *records):
        return [InteractionType(role) for role, _, _ in self.poll(*records)]

    def reload(self):
        state = self.joiner.state()
        self.joiner = Joiner(**self.bounds)
        self.joiner.load(state)

    def figures(self):
        j = self.joiner
        return (j.open_exposures, j.late_outcomes, j.corrections, j.contradicted, j.evicted,
                j.watermark_ms)  # fmt: skip


def same(a, b):
    assert a.told == b.told
    assert a.shut == b.shut
    assert a.figures() == b.figures()
    left, right = a.joiner.state(), b.joiner.state()
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


class Slow:
    """The rules once more, with lists and dictionaries, every rule as it is said."""

    def __init__(self, window_ms, idle_ms, open_max, pending_max, closed_max, ahead_ms=1000):
        self.window, self.idle, self.ahead = window_ms, idle_ms, ahead_ms
        self.open_max, self.pending_max, self.closed_max = open_max, pending_max, closed_max
        self.open, self.remembered, self.waiting = [], [], []
        self.high, self.last = {}, {}
        self.watermark = None
        self.late = self.corrections = self.contradicted = self.evicted = self.arrival = 0
        self.told, self.shut = [], []

    def tell(self, source, of, is_click, label, role, exposure, ts, counts):
        exposure = exposure or {"propensity": None, "position": 0}
        self.told.append((of["user"], of["item"], is_click, label, int(role),
                          exposure["propensity"], exposure["position"], ts, counts,
                          source))  # fmt: skip

    def passed(self, ts):
        return self.watermark is not None and self.watermark > ts + self.window

    def join(self, records):
        for source, r in enumerate(records):
            if r["kind"] >= len(KINDS):
                self.remove("user" if r["kind"] == REMOVES_USER else "item", r)
                continue
            kind = KINDS[r["kind"]]
            if kind not in ("impression", "click", "rating"):
                continue
            r = r | {"propensity": float(np.float32(r["propensity"]))}
            kafka = r["kafka_ts_ms"]
            kafka = self.last.get(r["partition"], -1) if kafka < 0 else kafka
            if kafka >= 0 and r["ts_ms"] > kafka + self.ahead:
                r["ts_ms"] = kafka if kind == "impression" else kafka + self.ahead
            if kind == "impression":
                self.impression(source, r)
            else:
                self.outcome(source, r, kind == "click")
            self.advance(r, moving(records[source + 1 :]))
            while self.open:
                oldest = min(self.open, key=lambda e: (e["ts_ms"], e["arrival"]))
                if not self.passed(oldest["ts_ms"]):
                    if len(self.open) <= self.open_max:
                        break
                    self.evicted += 1
                self.close(oldest, source)

    def remove(self, side, r):
        def gone(e):
            return e[side] == r[side]

        self.open = [e for e in self.open if not gone(e)]
        blank = {"user": -1, "item": -1, "slate": 0}
        self.remembered = [blank if gone(e) else e for e in self.remembered]
        self.waiting = [w | {"taken": w["taken"] or gone(w)} for w in self.waiting]

    def advance(self, r, pending):
        p = r["partition"]
        self.high[p] = max(self.high.get(p, r["ts_ms"]), r["ts_ms"])
        self.last[p] = max(self.last.get(p, r["kafka_ts_ms"]), r["kafka_ts_ms"])
        latest = max(self.last.values())
        if pending - self.high.keys():
            return  # a partition's first record is still to come
        lowest = min(
            self.high[q] for q in self.high if latest - self.last[q] <= self.idle or q in pending
        )
        self.watermark = lowest if self.watermark is None else max(lowest, self.watermark)

    def close_all(self):
        for e in sorted(self.open, key=lambda e: (e["ts_ms"], e["arrival"])):
            self.close(e, -1)

    def beside(self, e):
        """Return the exposures of its pair next before and next after it, None where none is."""
        pair = [o for o in self.open + self.remembered if o is not e
                and (o["user"], o["item"]) == (e["user"], e["item"])]  # fmt: skip
        order = {id(o): (o["ts_ms"], o["arrival"]) for o in [e, *pair]}
        older = [o for o in pair if order[id(o)] < order[id(e)]]
        newer = [o for o in pair if order[id(o)] > order[id(e)]]
        by = lambda o: order[id(o)]  # noqa: E731
        return max(older, key=by, default=None), min(newer, key=by, default=None)

    def decide(self, e):
        """Tell whether it is a first decision; else mark what it is against the one it repeats."""
        older, newer = self.beside(e)
        of = None
        if older is not None and (
            e["ts_ms"] - older["first"]["ts_ms"] <= self.window
            or e["ts_ms"] // self.window == older["ts_ms"] // self.window
        ):
            of = older
        elif newer is not None and newer not in self.open:
            first_ms = newer["first"]["ts_ms"]
            if (
                abs(first_ms - e["ts_ms"]) <= self.window
                or first_ms // self.window == e["ts_ms"] // self.window
            ):
                of = newer
        if of is None:
            e["first"] = e
            return True
        e["first"] = of["first"]
        e["seen"] = of["seen"] or of["shown"]
        self.contradicted += e["first"]["shown"] != e["shown"]
        return False

    def close(self, e, source):
        first = self.decide(e)
        self.open.remove(e)
        self.remembered = [*self.remembered, e][-self.closed_max :]
        value = 1.0 if e["click"] else None if e["rating"] is not None else 0.0
        role = CONTROL
        if e["shown"]:
            role = CLOSED if e["learned"] or e["rating"] is not None else EXPOSED
            e["zero"] = role == EXPOSED
        is_click = value is not None
        if e["shown"] or not e["seen"]:
            self.tell(
                source, e, is_click, value if is_click else e["rating"], role, e, e["ts_ms"], False
            )
        treated, control = prediction(e["user"], e["item"], e["ts_ms"])
        self.shut.append((e["user"], e["item"], e["shown"], value, e["rating"], e["propensity"],
                          0.75, e["position"], e["ts_ms"], first, float(treated),
                          float(control)))  # fmt: skip

    def exposure_of(self, r):
        pairs = [[e for e in held if (e["user"], e["item"]) == (r["user"], r["item"])]
                 for held in (self.open, self.remembered)]  # fmt: skip
        if r["slate"]:
            named = [e for e in pairs[0] + pairs[1] if e["slate"] == r["slate"]]
            return named[0] if named else None
        for held in pairs:
            near = [e for e in held if e["ts_ms"] <= r["ts_ms"] <= e["ts_ms"] + self.window]
            if near:
                return max(near, key=lambda e: (e["ts_ms"], e["arrival"]))
        return None

    def outcome(self, source, r, is_click):
        label = 1.0 if is_click else r["value"]
        role = CONSUMED if is_click else FACTUAL
        e = self.exposure_of(r)
        if e is None:
            if not self.passed(r["ts_ms"]):
                self.waiting = [*self.waiting, r | {"click": is_click, "taken": False}]
                self.waiting = self.waiting[-self.pending_max :]
            elif r["slate"]:
                self.late += 1
        elif e not in self.open:
            self.late += 1
            if is_click and e["zero"]:
                e["zero"], role = False, CORRECTION
                self.corrections += 1
        else:
            if e["shown"] and not e["learned"]:
                e["learned"], role = True, EXPOSED
            if is_click:
                self.clicked(e, r)
            else:
                e["rating"] = label
        if e is not None and not e["shown"]:
            role = CONSUMED
        about = e if role in (EXPOSED, CORRECTION) else None
        self.tell(source, r, is_click, label, role, about, r["ts_ms"], True)

    def clicked(self, e, r):
        e["click"] = True
        if r["slate"]:
            e["named"] = True
        else:
            e["click_ms"] = min(r["ts_ms"], math.inf if e["click_ms"] is None else e["click_ms"])

    def take_over(self, e):
        """Take the click from the exposure before it that would have been this one's."""
        older, _ = self.beside(e)
        if older is None or older not in self.open:
            return None
        click_ms = older["click_ms"]
        if click_ms is None or click_ms < e["ts_ms"]:
            return None
        older["click_ms"] = None
        self.clicked(e, {"slate": 0, "ts_ms": click_ms})
        if not older["named"]:
            older["click"] = False
            if older["learned"] and older["rating"] is None and e["shown"]:
                e["learned"] = True
        return click_ms

    def impression(self, source, r):
        pair = [e for e in self.open + self.remembered
                if (e["user"], e["item"]) == (r["user"], r["item"])]  # fmt: skip
        if r["slate"] and any(e["slate"] == r["slate"] for e in pair):
            return
        self.tell(source, r, True, 0.0, PREDICT, r, r["ts_ms"], False)
        e = r | {"arrival": self.arrival, "click": False, "rating": None, "learned": False,
                 "seen": False, "zero": False, "named": False, "click_ms": None}  # fmt: skip
        self.arrival += 1
        self.open.append(e)
        took = None
        for w in self.waiting:
            if w["taken"] or (w["user"], w["item"]) != (e["user"], e["item"]):
                continue
            named = w["slate"] != 0 and w["slate"] == e["slate"]
            near = w["slate"] == 0 and e["ts_ms"] <= w["ts_ms"] <= e["ts_ms"] + self.window
            if self.passed(w["ts_ms"]) or not (named or near):
                continue
            w["taken"] = True
            if w["click"]:
                self.clicked(e, w)
                took = w["ts_ms"] if took is None else took
            else:
                e["rating"] = w["value"]
        over = self.take_over(e)
        if took is None and not e["learned"]:
            took = over
        if took is not None and e["shown"]:
            e["learned"] = True
            self.tell(source, r, True, 1.0, EXPOSED, e, took, False)

    def figures(self):
        return (len(self.open), self.late, self.corrections, self.contradicted, self.evicted,
                self.watermark)  # fmt: skip


def world(seed, size, users=2, items=2, slates=4, partitions=3, jitter=12):
    """Events whose times drift onwards, out of order; one partition falls silent now and then."""
    r = np.random.default_rng(seed)
    records = []
    for n in range(size):
        now = 20 + n // 3
        partition = int(r.integers(partitions))
        if (n // 200) % 2 and partition == 0:
            partition = 1
        kind = r.choice(["impression", "click", "rating", "user"], p=[0.5, 0.25, 0.2, 0.05])
        records.append(
            record(
                str(kind), max(0, now - int(r.integers(-2, jitter))), int(r.integers(users)),
                int(r.integers(items)), int(r.random() < 0.7) * int(r.integers(slates) + n // 60),
                partition, now, float(r.integers(1, 6)), bool(r.random() < 0.7),
            )
        )  # fmt: skip
    return records


events = st.lists(
    st.builds(
        record,
        kind=st.sampled_from(["impression", "impression", "click", "rating", "user"]),
        ts=st.integers(0, 40),
        user=st.integers(0, 1),
        item=st.integers(0, 1),
        slate=st.integers(0, 3),
        partition=st.integers(0, 2),
        kafka=st.integers(-1, 60),
        value=st.sampled_from([1.0, 3.0, 5.0]),
        shown=st.booleans(),
    ),
    max_size=40,
)
removals = st.one_of(
    st.builds(removal, user=st.integers(-1, 2)), st.builds(removal, item=st.integers(-1, 2))
)
with_removals = st.lists(
    st.one_of(events.map(lambda some: some[:12]), removals.map(lambda r: [r])), max_size=12
).map(lambda parts: [r for part in parts for r in part])
bounds = st.fixed_dictionaries(
    {
        "open_max": st.integers(1, 8),
        "pending_max": st.integers(1, 5),
        "closed_max": st.integers(1, 8),
        "ahead_ms": st.sampled_from([0, 3, 1000]),
    }
)
ample = {"open_max": 1000, "pending_max": 250, "closed_max": 1000}


def moving(records):
    """Return the partitions of which these records would move the watermark."""
    kinds = ("impression", "click", "rating")
    named = [r for r in records if r["kind"] < len(KINDS)]
    return {r["partition"] for r in named if KINDS[r["kind"]] in kinds}


def agrees(records, limits):
    slow = Slow(WINDOW, IDLE, **limits)
    slow.join(records)
    run = Run(**limits)
    run.poll(*records)
    assert run.told == slow.told
    assert run.shut == slow.shut
    assert run.figures() == slow.figures()
    slow.close_all()
    run.take(run.joiner.close_all(), 0)
    assert run.told == slow.told
    assert run.shut == slow.shut
    return run


@settings(deadline=None, max_examples=300)
@given(events, bounds)
def test_the_compiled_rules_are_the_plain_ones(records, limits):
    agrees(records, limits)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "limits", [ample, {"open_max": 12, "pending_max": 5, "closed_max": 7}], ids=["ample", "tight"]
)
def test_the_compiled_rules_are_the_plain_ones_on_long_streams(seed, limits):
    run = agrees(world(seed, 2000), limits)
    told = Counter(row[4] for row in run.told)
    assert set(told) == set(map(int, InteractionType))  # every rule was met
    _, late, corrections, contradicted, evicted, _ = run.figures()
    assert min(late, corrections, contradicted) > 0
    assert (evicted > 0) == (limits is not ample)


@settings(deadline=None, max_examples=300)
@given(with_removals, bounds)
def test_a_removal_forgets_what_its_rules_say(records, limits):
    agrees(records, limits)


@settings(deadline=None, max_examples=300)
@given(with_removals, bounds, st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_removals_depend_on_neither_cuts_nor_restarts(records, limits, cuts, restarts):
    test_neither_cutting_polls_nor_a_restart_changes_anything.hypothesis.inner_test(
        records, limits, cuts, restarts
    )


@pytest.mark.parametrize("size", [1, 7, 100])
def test_removals_in_long_streams_depend_on_neither_cuts_nor_restarts(size):
    limits = {"open_max": 40, "pending_max": 20, "closed_max": 50}
    records = world(99, 1500, users=3, items=3)
    for n in range(5, len(records), 11):
        records[n] = removal(user=n % 4) if n % 2 else removal(item=n % 4)
    agrees(records, limits)
    whole, cut = Run(**limits), Run(**limits)
    whole.poll(*records)
    for n, start in enumerate(range(0, len(records), size)):
        if n % 5 == 0:
            cut.reload()
        stop = start + size
        cut.poll(*records[start:stop], pending=moving(records[stop:]))
    same(whole, cut)


@settings(deadline=None, max_examples=200)
@given(events, bounds, st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_neither_cutting_polls_nor_a_restart_changes_anything(records, limits, cuts, restarts):
    whole, cut = Run(**limits), Run(**limits)
    whole.poll(*records)
    places = sorted({0, len(records)} | {c for c in cuts | restarts if c < len(records)})
    for start, stop in pairwise(places):
        if start in restarts:
            cut.reload()
        cut.poll(*records[start:stop], pending=moving(records[stop:]))
    same(whole, cut)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_long_streams_do_not_depend_on_cuts_or_restarts(size):
    limits = {"open_max": 40, "pending_max": 20, "closed_max": 50}
    records = world(99, 2000, users=3, items=3)
    whole, cut = Run(**limits), Run(**limits)
    whole.poll(*records)
    for n, start in enumerate(range(0, len(records), size)):
        if n % 5 == 0:
            cut.reload()
        stop = start + size
        cut.poll(*records[start:stop], pending=moving(records[stop:]))
    same(whole, cut)


@settings(deadline=None, max_examples=100)
@given(events, bounds)
def test_outcomes_count_once_and_exposures_are_learned_once(records, limits):
    run = Run(**limits)
    for r in records:
        run.poll(r)
    run.take(run.joiner.close_all(), 0)
    counted = Counter(row[-1] for row in run.told if row[8])
    outcomes = [n for n, r in enumerate(records) if KINDS[r["kind"]] in ("click", "rating")]
    assert counted == Counter(outcomes)
    told = Counter(row[4] for row in run.told)
    assert told[PREDICT] == len(run.shut)
    assert told[CONTROL] <= sum(not row[2] for row in run.shut)
    zeros = sum(row[4] == EXPOSED and row[3] == 0 for row in run.told)
    assert zeros + told[CLOSED] == sum(row[2] for row in run.shut)  # every window ends in one way
    assert told[EXPOSED] - zeros <= told[CLOSED]  # learned on arrival: nothing at the end
    assert told[CORRECTION] == run.joiner.corrections <= zeros


@settings(deadline=None, max_examples=100)
@given(events)
def test_the_watermark_never_falls(records):
    run, marks = Run(**ample), []
    for r in records:
        run.poll(r)
        marks.append(-1 if run.joiner.watermark_ms is None else run.joiner.watermark_ms)
    assert marks == sorted(marks)


def test_a_click_is_learned_on_arrival_and_its_window_closes():
    run = Run()
    assert run.poll(impression(0), click(10)) == [(PREDICT, 0, False), (EXPOSED, 1, True)]
    assert run.poll(click(10)) == [(CONSUMED, 1, True)]
    assert run.poll(click(11, user=5)) == [(CONSUMED, 1, True), (CLOSED, 1, False)]
    assert run.shut[0][3] == 1


def test_the_zero_is_learned_when_the_window_closes_and_a_late_click_corrects_it_once():
    run = Run()
    assert run.roles(impression(0), rating(10, 4, user=5)) == [PREDICT, FACTUAL]
    assert run.poll(rating(11, 4, user=5))[1:] == [(EXPOSED, 0, False)]
    assert run.roles(click(9), click(9), click(9, slate=1)) == [CORRECTION, CONSUMED, CONSUMED]
    assert (run.joiner.late_outcomes, run.joiner.corrections) == (3, 1)
    assert run.roles(click(30, user=5), click(2, slate=77)) == [CONSUMED, CONSUMED]
    assert run.joiner.late_outcomes == 4


def test_a_rating_takes_the_place_of_the_zero():
    run = Run()
    assert run.poll(impression(0), rating(3, 4))[1:] == [(EXPOSED, 4, True)]
    assert run.poll(click(11, user=5))[1:] == [(CLOSED, 4, False)]
    assert run.shut[0][3:5] == (None, 4)


def test_early_outcomes_wait_for_their_impression():
    run = Run()
    assert run.roles(click(5), rating(6, 2)) == [CONSUMED, FACTUAL]
    assert run.poll(impression(1)) == [(PREDICT, 0, False), (EXPOSED, 1, False)]
    assert run.roles(rating(7, 2, user=3), impression(2, user=3)) == [FACTUAL, PREDICT]
    assert run.roles(rating(13, 1, user=5)) == [FACTUAL, CLOSED, CLOSED]
    assert [row[3:5] for row in run.shut] == [(1, 2), (None, 2)]


def test_an_impression_looks_at_a_bounded_number_of_waiting_outcomes():
    run = Run()
    run.poll(click(5), *(click(0) for _ in range(254)))
    assert run.roles(impression(1)) == [PREDICT, EXPOSED]
    run.poll(click(5, user=1), *(click(0, user=1) for _ in range(256)))
    assert run.roles(impression(1, user=1)) == [PREDICT]


def test_a_name_is_kept_to():
    run = Run()
    run.poll(impression(0, slate=1), impression(1, slate=2))
    assert run.roles(click(2, slate=3)) == [CONSUMED]  # its own impression may still come
    assert run.roles(click(2, slate=1), click(2)) == [EXPOSED, EXPOSED]
    assert run.roles(impression(1, slate=3)) == [PREDICT, EXPOSED]


def test_a_repeated_impression_is_ignored_while_open_and_remembered():
    run = Run()
    assert run.roles(impression(0), impression(0), impression(3)) == [PREDICT]
    assert run.roles(click(11, user=5), impression(4)) == [CONSUMED, EXPOSED]
    assert run.roles(impression(4, slate=0), impression(4, slate=0)) == [PREDICT, PREDICT]


def test_a_withheld_item_gives_its_control_outcome():
    run = Run()
    run.poll(impression(0, shown=False), impression(0, item=1, shown=False))
    # what was not shown tells nothing of the outcome if shown
    assert run.roles(click(3), rating(4, 5, item=1)) == [CONSUMED, CONSUMED]
    assert run.poll(impression(20, item=2, shown=False))[1:] == [
        (CONTROL, 1, False), (CONTROL, 5, False)]  # fmt: skip
    assert run.poll(click(31, user=5))[1:] == [(CONTROL, 0, False)]


def test_an_idle_partition_does_not_hold_the_watermark():
    run = Run()
    run.poll(impression(0, partition=0), click(30, user=5, partition=1, kafka=IDLE))
    assert run.joiner.watermark_ms == 0
    assert run.roles(click(31, user=5, partition=1, kafka=IDLE + 1)) == [CONSUMED, EXPOSED]
    run.poll(click(5, user=6, partition=0, kafka=IDLE + 2))
    assert run.joiner.watermark_ms == 31


def test_one_record_may_close_many_windows():
    run = Run()
    run.poll(*(impression(n % 7, slate=1 + n) for n in range(5000)))
    assert len(run.roles(click(50, user=5))) == 5001
    assert [row[8] for row in run.shut] == sorted(n % 7 for n in range(5000))


def test_memory_is_bounded():
    limits = {"open_max": 50, "pending_max": 20, "closed_max": 30}
    run = Run(**limits)
    allotted = sum(part.nbytes for part in run.joiner._memory)
    r = np.random.default_rng(1)
    for n in range(0, 20_000, 1000):
        run.poll(
            *(
                record(("impression", "click", "rating")[k], n + t, int(r.integers(500)), t % 7,
                       int(r.integers(1, 1 << 40)), value=3.0)
                for t, k in enumerate(r.integers(3, size=1000).tolist())
            )
        )  # fmt: skip
        sizes = [len(run.joiner.state()[f"{part}.marks"]) for part in ("open", "closed", "waiting")]
        assert np.all(sizes <= np.array([50, 30, 20]))
    assert sum(part.nbytes for part in run.joiner._memory) - allotted <= 24
    assert 10_000 > len(run.shut) > 6_000


def test_what_fits_no_more_is_refused_or_let_go():
    run = Run(**ample)
    run.poll(
        *(impression(n % 3, slate=1 + n) for n in range(9)), click(1, user=7), click(2, user=8)
    )
    with pytest.raises(Inconsistent, match="9 open"):
        Joiner(WINDOW, IDLE, open_max=8).load(run.joiner.state())
    small = Joiner(WINDOW, IDLE, 9, 1, 1)
    small.load(run.joiner.state())
    assert small.state()["waiting.ts_ms"].tolist() == [2]
    with pytest.raises(ValueError, match="partition -1"):
        run.poll(click(1, partition=-1))
    with pytest.raises(ValueError):
        Joiner(WINDOW, IDLE, open_max=0)
