"""Which face a request gets."""

from sive.calls import Call
from sive.faces import Face, StreamFace, WholeFace
from sive.responses.faces import ResponseStreamFace, ResponseWholeFace
from sive.through import THROUGH
from sive.through_faces import ThroughStreamFace, ThroughWholeFace


def face_of(call: Call) -> Face:
    """The face of a request: a stream or one piece, in the protocol it was made in."""
    if call.origin is not None:
        return ResponseStreamFace(call.origin) if call.stream else ResponseWholeFace(call, call.origin)
    if call.endpoint in THROUGH:
        return ThroughStreamFace(call.endpoint) if call.stream else ThroughWholeFace(call)
    return StreamFace() if call.stream else WholeFace(call)
