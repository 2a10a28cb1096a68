"""Body plans of the creatures: from pose numbers to capsules, parts and keypoints.

A plan builds one kind of creature from tapered capsules (a segment with a radius at each end), for
many creatures at once. Points are complex numbers x + iy of shape [N], so that moving along a limb
is one multiplication. A creature faces right (+x), y points downwards as in images, and its length
is about two units. Position, size, angle and mirroring are applied later (`raster.place`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

PARTS: tuple[str, ...] = (
    "ground",
    "body",
    "head",
    "limb",  # legs, arms, claws and fins
    "tail",
    "wing",
    "shell",
    "antenna",  # feelers, horns, ears and eye stalks
    "eye",
)
KEYPOINTS: tuple[str, ...] = ("eye", "head", "body", "tail", "front_limb", "hind_limb", "wing")
TONES: tuple[str, ...] = ("main", "far", "pale", "accent", "eye")  # far: shaded
POSE = 32  # pose numbers of a creature, in [0, 1): its proportions and joint angles

Points = np.ndarray  # complex128 [N]
Numbers = np.ndarray | float  # float64 [N], or one for all


def turn(angle: Numbers) -> Points:
    """The unit vector at `angle` radians, complex128 [N]: 0 is ahead, pi / 2 down, -pi / 2 up."""
    return np.cos(angle) + 1j * np.sin(angle)


class Body:
    """Builder of N creatures of one kind: collects capsules, back to front, and keypoints."""

    def __init__(self, pose: np.ndarray):
        self._pose = pose  # float64 [N, POSE] in [0, 1)
        self._next = 0
        self.capsules: list[np.ndarray] = []  # S times float64 [N, 6]: x0, y0, x1, y1, r0, r1
        self.parts: list[int] = []  # S indices into PARTS
        self.tones: list[int] = []  # S indices into TONES
        self.marks: dict[int, np.ndarray] = {}  # index into KEYPOINTS -> complex [N]

    def num(self, low: float, high: float) -> np.ndarray:
        """The next pose number of each creature, scaled to [low, high): float64 [N]."""
        column = self._pose[:, self._next]
        self._next += 1
        return low + (high - low) * column

    def add(
        self,
        part: str,
        a: Points | complex,
        b: Points | complex,
        r0: Numbers,
        r1: Numbers | None = None,
        tone: str = "main",
    ) -> None:
        """Adds a capsule.

        Args:
            part: name in PARTS.
            a: start of the segment, complex [N].
            b: end of the segment, complex [N].
            r0: radius at `a`.
            r1: radius at `b`; None means r0.
            tone: name in TONES.
        """
        capsule = np.empty((len(self._pose), 6))
        capsule[:, 0], capsule[:, 1] = np.real(a), np.imag(a)
        capsule[:, 2], capsule[:, 3] = np.real(b), np.imag(b)
        capsule[:, 4], capsule[:, 5] = r0, r0 if r1 is None else r1
        self.capsules.append(capsule)
        self.parts.append(PARTS.index(part))
        self.tones.append(TONES.index(tone))

    def dot(self, part: str, at: Points | complex, r: Numbers, tone: str = "main") -> None:
        """Adds a disc of radius r around `at`, complex [N]."""
        self.add(part, at, at, r, tone=tone)

    def mark(self, name: str, at: Points | complex) -> None:
        """Sets the keypoint `name` to `at`, complex [N]; a kind lacks those that are not set."""
        self.marks[KEYPOINTS.index(name)] = np.zeros(len(self._pose)) + at

    def eye(self, at: Points | complex, r: float = 0.07) -> None:
        """Adds an eye of radius r around `at`, complex [N], and sets the keypoint."""
        self.dot("eye", at, r, "eye")
        self.mark("eye", at)


def _four_legs(b: Body, hind: Points, front: Points, length: Numbers, swing: float) -> None:
    """Two far legs, shaded, and two near ones; the angle of each is in [-swing, swing] radians."""
    for tone in ("far", "main"):
        for name, hip in (("hind_limb", hind), ("front_limb", front)):
            foot = hip + length * turn(np.pi / 2 + b.num(-swing, swing))
            b.add("limb", hip, foot, 0.12, 0.085, tone)
            b.mark(name, foot)


def _dog(b: Body) -> None:
    hind, front = b.num(-0.62, -0.48) + 0j, b.num(0.34, 0.48) + 1j * b.num(-0.1, 0.05)
    girth = b.num(0.2, 0.27)
    tip = hind - 0.12 + b.num(0.4, 0.6) * turn(b.num(-2.9, -1.7))
    b.add("tail", hind - 0.12, tip, 0.1, 0.07)
    _four_legs(b, hind + 0.12j, front + 0.12j, b.num(0.5, 0.66), 0.45)
    b.add("body", hind, front, girth, girth * 1.05)
    head = front + b.num(0.38, 0.5) * turn(b.num(-1.1, -0.4))
    look = turn(b.num(-0.15, 0.45))
    b.add("body", front, head, 0.18, 0.15)
    b.add("head", head, head + 0.3 * look, 0.2, 0.11, "main")
    b.add("antenna", head - 0.1, head - 0.16 + 0.27j * turn(b.num(-0.3, 0.3)), 0.1, 0.06, "accent")
    b.eye(head + (0.09 - 0.06j) * look)
    b.mark("head", head)
    b.mark("body", (hind + front) / 2)
    b.mark("tail", tip)


def _giraffe(b: Body) -> None:
    hind, front = b.num(-0.55, -0.42) + 0.15j, b.num(0.08, 0.2) + 1j * b.num(0.0, 0.1)
    tip = hind - 0.16 + b.num(0.3, 0.45) * turn(b.num(1.6, 2.6))
    b.add("tail", hind - 0.12, tip, 0.07, 0.06)
    _four_legs(b, hind + 0.1j, front + 0.1j, b.num(0.72, 0.9), 0.25)
    b.add("body", hind, front, b.num(0.17, 0.22), 0.21)
    neck = front + b.num(0.8, 1.05) * turn(b.num(-1.4, -0.85))
    look = turn(b.num(0.1, 0.5))
    b.add("body", front, neck, 0.17, 0.09)
    b.add("antenna", neck, neck - 0.06 - 0.2j, 0.055, tone="accent")
    b.add("head", neck, neck + 0.24 * look, 0.13, 0.09)
    b.eye(neck + (0.04 - 0.02j) * look, 0.06)
    b.mark("head", neck)
    b.mark("body", (hind + front) / 2)
    b.mark("tail", tip)


def _bird(b: Body) -> None:
    lean = turn(b.num(-0.7, -0.05))
    chest, rump = 0.22 * lean, -0.4 * lean
    tip = rump - b.num(0.4, 0.6) * lean * turn(b.num(-0.3, 0.3))
    for tone in ("far", "accent"):
        foot = 0.1j + b.num(0.52, 0.62) * turn(np.pi / 2 + b.num(-0.4, 0.3))
        b.add("limb", 0.1j, foot, 0.065, tone=tone)
        b.add("limb", foot, foot + 0.16, 0.06, tone=tone)
        b.mark("hind_limb", foot)
    b.add("tail", rump, tip, 0.1, 0.15, "far")
    b.add("body", chest, rump, b.num(0.3, 0.38), 0.15)
    head = chest + b.num(0.42, 0.52) * turn(b.num(-1.2, -0.5))
    look = turn(b.num(-0.2, 0.3))
    b.add("head", head + 0.15 * look, head + 0.42 * look, 0.11, 0.03, "accent")
    b.dot("head", head, b.num(0.2, 0.25))
    b.eye(head + (0.08 - 0.05j) * look)
    raised = b.num(-2.9, -1.3)  # from folded along the back to raised
    shoulder = 0.1 * lean - 0.08j
    length = b.num(0.6, 0.8)
    b.add("wing", shoulder, shoulder + length * turn(raised), 0.17, 0.1, "pale")
    b.add("wing", shoulder, shoulder + 0.8 * length * turn(raised - 0.4), 0.17, 0.1, "pale")
    b.mark("wing", shoulder + length * turn(raised))
    b.mark("head", head)
    b.mark("body", (chest + rump) / 2)
    b.mark("tail", tip)


def _fish(b: Body) -> None:
    bend = turn(b.num(-0.35, 0.35))
    girth = b.num(0.3, 0.44)
    nose, stem = b.num(0.3, 0.45) + 0j, -b.num(0.5, 0.65) * bend
    spread = b.num(0.5, 0.85)
    for side in (-1, 1):
        fin = stem - b.num(0.26, 0.36) * bend * turn(side * spread)
        b.add("tail", stem, fin, 0.08, 0.17, "accent")
    b.mark("tail", stem - 0.1 * bend)
    back = b.num(-0.25, -0.05)
    b.add("limb", 0.2 - 1j * girth * 0.8, back - 1j * (girth + 0.16), 0.12, 0.08, "accent")
    b.add("limb", 1j * girth * 0.7, back + 1j * (girth + 0.12), 0.1, 0.07, "accent")
    b.mark("hind_limb", back + 1j * (girth + 0.12))
    b.add("body", 0.12, stem, girth, 0.09)
    b.add("head", 0.3, nose + 0.12, girth * 0.88, girth * 0.55)
    fin = 0.02 + 0.08j + b.num(0.25, 0.35) * turn(b.num(2.2, 3.4))
    b.add("limb", 0.02 + 0.08j, fin, 0.06, 0.1, "pale")
    b.eye(nose + 0.04 - 1j * girth * 0.3, 0.085)
    b.mark("front_limb", fin)
    b.mark("head", nose)
    b.mark("body", -0.1)


def _snake(b: Body) -> None:
    pieces = 11
    wave, phase = b.num(0.75, 1.3), b.num(0, 2 * np.pi)
    step, curl, girth = b.num(0.5, 0.75), b.num(-0.1, 0.1), b.num(0.1, 0.14)
    point = np.zeros(len(wave), complex)
    points = [point]
    for i in range(pieces):
        point = point - 0.24 * turn(wave * np.sin(phase + step * i) + curl * i)
        points.append(point)
    for i in range(pieces - 1, -1, -1):
        part = "tail" if i >= pieces - 3 else "body"
        r0, r1 = (girth * min(1.0, (pieces + 0.7 - k) / 4) for k in (i, i + 1))
        b.add(part, points[i], points[i + 1], r0, r1, "accent" if i % 3 == 1 else "main")
    look = turn(wave * np.sin(phase - step))
    b.add("antenna", points[0] + 0.2 * look, points[0] + 0.42 * look, 0.045, tone="accent")
    b.add("head", points[0], points[0] + 0.17 * look, 0.16, 0.13)
    b.eye(points[0] + (0.1 - 0.06j) * look, 0.065)
    b.mark("head", points[0])
    b.mark("body", points[pieces // 2])
    b.mark("tail", points[-1])


def _spider(b: Body) -> None:
    reach = b.num(0.42, 0.52)
    for side in (-1, 1):
        for i, angle in enumerate((0.35, 1.05, 1.85, 2.6)):
            angle = side * (angle + b.num(-0.18, 0.18))
            knee = 0.12 + (0.14 + reach) * turn(angle)
            foot = knee + 0.45 * turn(angle + side * b.num(0.1, 0.75) * (-1 if i < 2 else 1))
            b.add("limb", 0.12 + 0j, knee, 0.065, tone="main")
            b.add("limb", knee, foot, 0.065, 0.055, tone="far")
            if i in (0, 3):
                b.mark("front_limb" if i == 0 else "hind_limb", foot)
    rear = -0.22 - b.num(0.05, 0.15)
    b.add("body", rear, rear - 0.08, b.num(0.24, 0.34), 0.24)
    b.dot("body", rear - 0.03, 0.12, "accent")
    b.add("head", 0.1, 0.2, 0.19, 0.17, "main")
    b.dot("eye", 0.28 - 0.08j, 0.06, "eye")
    b.eye(0.28 + 0.08j, 0.06)
    b.mark("head", 0.15)
    b.mark("body", rear)


def _octopus(b: Body) -> None:
    top = b.num(-0.75, -0.6) * 1j + b.num(-0.15, 0.15)
    for i in range(6):
        angle = np.pi * (0.94 - 0.176 * i) + b.num(-0.1, 0.1)
        a = 0.11 * (2.5 - i) * -1.0 + 0.05j
        bow = b.num(-0.8, 0.8)
        mid = a + 0.36 * turn(angle)
        low = mid + 0.34 * turn(angle + bow)
        tip = low + 0.26 * turn(angle - bow * 0.6)
        tone = "main" if i % 2 else "far"
        b.add("limb", a, mid, 0.12, 0.1, tone)
        b.add("limb", mid, low, 0.1, 0.075, tone)
        b.add("limb", low, tip, 0.075, 0.055, tone)
        if i in (0, 5):
            b.mark("hind_limb" if i == 0 else "front_limb", tip)
    b.add("head", top, -0.1j, b.num(0.33, 0.42), 0.27)
    b.dot("eye", -0.13 - 0.18j, 0.085, "eye")
    b.eye(0.13 - 0.18j, 0.085)
    b.mark("head", top)
    b.mark("body", -0.02j)


def _crab(b: Body) -> None:
    width, deep = b.num(0.26, 0.36), b.num(0.24, 0.31)
    for side in (-1, 1):
        for i in range(3):
            hip = side * width + 0.1j
            knee = hip + side * 0.42 * turn(side * (-0.1 + 0.42 * i + b.num(-0.15, 0.15)))
            b.add("limb", hip, knee, 0.075, tone="main")
            b.add("limb", knee, knee + (side * 0.1 + 0.28j), 0.07, 0.05, "far")
            if side == 1 and i == 0:
                b.mark("hind_limb", knee)
        shoulder = side * (width + 0.1) - 0.1j
        rise = b.num(-1.35, -0.75)
        wrist = shoulder + 0.36 * (np.cos(rise) * side + 1j * np.sin(rise))
        b.add("limb", shoulder, wrist, 0.085, tone="main")
        grip = b.num(0.25, 0.5)
        for finger in (-1, 1):
            claw = wrist + 0.32j * turn(finger * grip + np.pi - side * 0.35)
            b.add("limb", wrist, claw, 0.14, 0.055, "accent")
        if side == 1:
            b.mark("front_limb", wrist)
        eye = side * 0.14 - 1j * (deep + 0.17)
        b.add("antenna", side * 0.1 - 0.1j, eye, 0.05, tone="far")
        b.dot("eye", eye, 0.075, "eye")
        b.mark("eye", eye)
    b.add("body", -width, width, deep, tone="main")
    b.add("head", -0.12 - 0.1j, 0.12 - 0.1j, 0.1, tone="pale")
    b.mark("head", -0.1j)
    b.mark("body", 0.05j)


def _butterfly(b: Body) -> None:
    open_ = b.num(0.62, 1.0)  # the wings seen from above: from half folded to flat
    rise, drop = b.num(-1.05, -0.65), b.num(0.5, 0.95)
    for side in (-1, 1):
        for angle, length, r in ((drop, 0.46, 0.24), (rise, b.num(0.6, 0.7), 0.32)):
            lift = b.num(-0.06, 0.06)
            tip = length * (np.cos(angle + lift) * open_ * side + 1j * np.sin(angle + lift))
            b.add("wing", 0.05 * side, tip, 0.1, r * open_, "main" if r > 0.3 else "far")
            b.dot("wing", tip, 0.5 * r * open_, "accent" if r > 0.3 else "pale")
        b.add("antenna", -0.36j, side * b.num(0.18, 0.3) - 0.78j, 0.04, tone="far")
    b.mark("wing", tip)
    b.add("tail", 0.05j, b.num(-0.06, 0.06) + 0.5j, 0.085, 0.06, "eye")
    b.add("body", -0.2j, 0.1j, 0.1, tone="eye")
    b.dot("head", -0.36j, 0.13, "eye")
    b.eye(0.05 - 0.4j, 0.05)
    b.mark("head", -0.36j)
    b.mark("body", -0.05j)
    b.mark("tail", 0.45j)


def _snail(b: Body) -> None:
    tip, front = -b.num(0.8, 1.0) + 0.45j, b.num(0.45, 0.6) + 0.42j
    head = front + b.num(0.3, 0.5) * turn(b.num(-1.2, -0.5))
    middle = b.num(-0.3, -0.1) - 1j * b.num(0.05, 0.2)
    r = b.num(0.46, 0.56)
    for i, angle in enumerate((-1.75, -1.0)):
        stalk = head + b.num(0.34, 0.44) * turn(angle + b.num(-0.2, 0.2))
        b.add("antenna", head, stalk, 0.055, tone="far" if i == 0 else "main")
        b.dot("eye", stalk, 0.075, "eye")
    b.mark("eye", stalk)
    b.add("tail", -0.2 + 0.43j, tip, 0.15, 0.06)
    b.add("body", -0.4 + 0.41j, front, 0.16, 0.17)
    b.add("head", front, head, 0.17, 0.16)
    b.dot("shell", middle, r, "accent")
    spin = turn(b.num(0, 2 * np.pi))
    for i, tone in enumerate(("pale", "accent", "main")):
        shrink = (0.72, 0.48, 0.24)[i]
        b.dot("shell", middle + r * (0.14, 0.08, 0.12)[i] * spin * turn(1.6 * i), r * shrink, tone)
    b.mark("head", head)
    b.mark("body", (front - 0.4 + 0.41j) / 2)
    b.mark("tail", tip)


PLANS: dict[str, Callable[[Body], None]] = {
    "dog": _dog,
    "giraffe": _giraffe,
    "bird": _bird,
    "fish": _fish,
    "snake": _snake,
    "spider": _spider,
    "octopus": _octopus,
    "crab": _crab,
    "butterfly": _butterfly,
    "snail": _snail,
}
KINDS: tuple[str, ...] = tuple(PLANS)
SLOTS = 24  # capsules per creature: the most of any plan; the others are padded


def build(
    kind: np.ndarray, pose: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Builds creatures of any kinds, in the coordinates of their body plans.

    Args:
        kind: int [N], indices into KINDS.
        pose: float64 [N, POSE] in [0, 1).

    Returns:
        capsules: float64 [N, SLOTS, 6]: x0, y0, x1, y1, r0, r1; unused slots are zero.
        parts: uint8 [N, SLOTS], indices into PARTS; 0 marks an unused slot.
        tones: uint8 [N, SLOTS], indices into TONES.
        marks: float64 [N, len(KEYPOINTS), 3]: x, y, and 1 where the kind has that point.
    """
    n = len(kind)
    capsules = np.zeros((n, SLOTS, 6))
    parts = np.zeros((n, SLOTS), np.uint8)
    tones = np.zeros((n, SLOTS), np.uint8)
    marks = np.zeros((n, len(KEYPOINTS), 3))
    for k, plan in enumerate(PLANS.values()):
        rows = np.flatnonzero(kind == k)
        if len(rows) == 0:
            continue
        body = Body(pose[rows])
        plan(body)
        used = len(body.parts)
        capsules[rows, :used] = np.stack(body.capsules, axis=1)
        parts[rows, :used] = body.parts
        tones[rows, :used] = body.tones
        for point, at in body.marks.items():
            marks[rows, point] = np.stack([at.real, at.imag, np.ones(len(rows))], axis=1)
    return capsules, parts, tones, marks
