"""ristretto255 through libsodium, against the vectors of the RFCs."""

import hashlib
import os

import pytest
import rbcl
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.crypto import ristretto

# RFC 9497 appendix A.1.1, OPRF(ristretto255, SHA-512), mode OPRF: skSm, Blind and the DST of HashToGroup.
SECRET = bytes.fromhex("5ebcea5ee37023ccb9fc2d2019f9d7737be85591ae8652ffa9ef0f4d37063b0e")
BLIND = bytes.fromhex("64d37aed22a27f5191de1c1d69fadb899d8862b58eb4220029e036ec4c1f6706")
DST = b"HashToGroup-OPRFV1-\x00-ristretto255-SHA512"
# Input, BlindedElement, EvaluationElement, Output of its vectors 1 and 2.
RFC9497 = [
    (
        "00",
        "609a0ae68c15a3cf6903766461307e5c8bb2f95e7e6550e1ffa2dc99e412803c",
        "7ec6578ae5120958eb2db1745758ff379e77cb64fe77b0b2d8cc917ea0869c7e",
        "527759c3d9366f277d8c6020418d96bb393ba2afb20ff90df23fb7708264e2f3"
        "ab9135e3bd69955851de4b1f9fe8a0973396719b7912ba9ee8aa7d0b5e24bcf6",
    ),
    (
        "5a" * 17,
        "da27ef466870f5f15296299850aa088629945a17d1f5b7f5ff043f76b3c06418",
        "b4cbf5a4f1eeda5a63ce7b77c7d23f461db3fcab0dd28e4e17cecb5c90d02c25",
        "f4a74c9c592497375e796aa837e907b1a045d34306a749db9f34221f7e750cb4"
        "f2a6413a6bf6fa5e19ba6348eb673934a722a7ede2e7621306d18951e7cf2c73",
    ),
]

# RFC 9496 appendix A.1: the generator times 0, 1, ... 15.
MULTIPLES = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76",
    "6a493210f7499cd17fecb510ae0cea23a110e8d5b901f8acadd3095c73a3b919",
    "94741f5d5d52755ece4f23f044ee27d5d1ea1e2bd196b462166b16152a9d0259",
    "da80862773358b466ffadfe0b3293ab3d9fd53c5ea6c955358f568322daf6a57",
    "e882b131016b52c1d3337080187cf768423efccbb517bb495ab812c4160ff44e",
    "f64746d3c92b13050ed8d80236a7f0007c3b3f962f5ba793d19a601ebb1df403",
    "44f53520926ec81fbd5a387845beb7df85a96a24ece18738bdcfa6a7822a176d",
    "903293d8f2287ebe10e2374dc1a53e0bc887e592699f02d077d5263cdd55601c",
    "02622ace8f7303a31cafc63f8fc48fdc16e1c8c8d234b2f0d6685282a9076031",
    "20706fd788b2720a1ed2a5dad4952b01f413bcf0e7564de8cdc816689e2db95f",
    "bce83f8ba5dd2fa572864c24ba1810f9522bc6004afe95877ac73241cafdab42",
    "e4549ee16b9aa03099ca208c67adafcafa4c3f3e4e5303de6026e3ca8ff84460",
    "aa52e000df2e16f55fb1032fc33bc42742dad6bd5a8fc0be0167436c5948501f",
    "46376b80f409b29dc2b5f6f0c52591990896e5716f41477cd30085ab7f10301e",
    "e0c418f7c8d9c4cdd7395b93ea124f3ad99021bb681dfc3302a9d99a2e53e64e",
]

# RFC 9496 appendix A.2: encodings to be refused.
INVALID = [
    "00ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ed57ffd8c914fb201471d1c3d245ce3c746fcbe63a3679d51b6a516ebebe0e20",
    "c34c4e1826e5d403b78e246e88aa051c36ccf0aafebffe137d148a2bf9104562",
    "c940e5a4404157cfb1628b108db051a8d439e1a421394ec4ebccb9ec92a8ac78",
    "47cfc5497c53dc8e61c91d17fd626ffb1c49e2bca94eed052281b510b1117a24",
    "f1c6165d33367351b0da8f6e4511010c68174a03b6581212c71c0e1d026c3c72",
    "87260f7a2f12495118360f02c26a470f450dadf34a413d21042b43b9d93e1309",
    "26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371",
    "4eac077a713c57b4f4397629a4145982c661f48044dd3f96427d40b147d9742f",
    "de6a7b00deadc788eb6b6c8d20c0ae96c2f2019078fa604fee5b87d6e989ad7b",
    "bcab477be20861e01e4a0e295284146a510150d9817763caf1a6f4b422d67042",
    "2a292df7e32cababbd9de088d1d1abec9fc0440f637ed2fba145094dc14bea08",
    "f4a9e534fc0d216c44b218fa0c42d99635a0127ee2e53c712f70609649fdff22",
    "8268436f8c4126196cf64b3c7ddbda90746a378625f9813dd9b8457077256731",
    "2810e5cbc2cc4d4eece54f61c6f69758e289aa7ab440b3cbeaa21995c2f4232b",
    "3eb858e78f5a7254d8c9731174a94f76755fd3941c0ac93735c07ba14579630e",
    "a45fdc55c76448c049a1ab33f17023edfb2be3581e9c7aade8a6125215e04220",
    "d483fe813c6ba647ebbfd3ec41adca1c6130c2beeee9d9bf065c8d151c5f396e",
    "8a2e1d30050198c65a54483123960ccc38aef6848e1ec8f5f780e8523769ba32",
    "32888462f8b486c68ad7dd9610be5192bbeaf3b443951ac1a8118419d9fa097b",
    "227142501b9d4355ccba290404bde41575b037693cef1f438c47f8fbf35d1165",
    "5c37cc491da847cfeb9281d407efc41e15144c876e0170b499a96a22ed31e01e",
    "445425117cb8c90edcbc7c1cc0e74f747f2c1efa5630a967c64f287792a48a4b",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]

ORDER = 2**252 + 27742317777372353535851937790883648493
GOOD = bytes.fromhex(MULTIPLES[1])


@pytest.mark.parametrize(("message", "blinded", "evaluated", "output"), RFC9497)
def test_oprf_vectors(message: str, blinded: str, evaluated: str, output: str) -> None:
    point = ristretto.hash_to_group([bytes.fromhex(message)], DST)
    sent = ristretto.raise_points(point, BLIND)
    answer = ristretto.raise_points(sent, SECRET)
    assert (sent.hex(), answer.hex()) == (blinded, evaluated)
    plain = ristretto.raise_points(answer, ristretto.invert(BLIND))
    assert plain == ristretto.raise_points(point, SECRET)
    raw = bytes.fromhex(message)
    finalised = len(raw).to_bytes(2, "big") + raw + (32).to_bytes(2, "big") + plain + b"Finalize"
    assert hashlib.sha512(finalised).hexdigest() == output


def test_multiples_of_the_generator() -> None:
    for k in range(1, 16):
        assert ristretto.raise_points(GOOD, k.to_bytes(32, "little")).hex() == MULTIPLES[k]
    assert ristretto.check_points(bytes.fromhex("".join(MULTIPLES[1:]))) is None


TOP_BIT = [(bytes.fromhex(point)[:31] + bytes([bytes.fromhex(point)[31] | 0x80])).hex() for point in MULTIPLES]


@pytest.mark.parametrize("encoding", [*INVALID, MULTIPLES[0], *TOP_BIT])
@pytest.mark.parametrize("before", [0, 300])  # one thread, several threads
def test_invalid_encodings_and_the_identity_are_found(encoding: str, before: int) -> None:
    points = GOOD * before + bytes.fromhex(encoding) + GOOD + bytes.fromhex(encoding)
    assert ristretto.check_points(points) == before
    with pytest.raises(ValueError, match="point"):
        ristretto.raise_points(points, BLIND)


def test_lists_keep_their_order_across_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [str(i).encode() for i in range(301)]
    key = ristretto.random_scalar()
    monkeypatch.setattr(ristretto, "CORES", 1)
    alone = ristretto.raise_points(ristretto.hash_to_group(messages, DST), key)
    monkeypatch.setattr(ristretto, "CORES", 3)
    together = ristretto.raise_points(ristretto.hash_to_group(messages, DST), key)
    assert alone == together
    last = ristretto.raise_points(ristretto.hash_to_group(messages[-1:], DST), key)
    assert together[-32:] == last


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=4))
def test_exponents_commute_and_invert(messages: list[bytes]) -> None:
    a, b = ristretto.random_scalar(), ristretto.random_scalar()
    points = ristretto.hash_to_group(messages, DST)
    ab = ristretto.raise_points(ristretto.raise_points(points, a), b)
    assert ab == ristretto.raise_points(ristretto.raise_points(points, b), a)
    assert ristretto.raise_points(ab, ristretto.invert(a)) == ristretto.raise_points(points, b)


def test_scalars_are_fresh_reduced_and_not_zero() -> None:
    scalars = {ristretto.random_scalar() for _ in range(100)}
    assert len(scalars) == 100
    assert all(0 < int.from_bytes(s, "little") < ORDER for s in scalars)


def test_tags_separate() -> None:
    assert ristretto.hash_to_group([b"x"], b"one") != ristretto.hash_to_group([b"x"], b"two")


@pytest.mark.parametrize("dst", [b"", bytes(256)])
def test_bad_tags(dst: bytes) -> None:
    with pytest.raises(ValueError, match="tag"):
        ristretto.hash_to_group([b"x"], dst)


def test_ragged_lists() -> None:
    for function in (ristretto.check_points, lambda p: ristretto.raise_points(p, BLIND)):
        with pytest.raises(ValueError, match="whole number"):
            function(GOOD + b"\1")


def test_empty_lists() -> None:
    assert ristretto.hash_to_group([], DST) == b""
    assert ristretto.raise_points(b"", BLIND) == b""
    assert ristretto.check_points(b"") is None


def test_the_result_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="identity"):
        ristretto.raise_points(GOOD, bytes(32))
    with pytest.raises(ValueError, match="zero"):
        ristretto.invert(bytes(32))


def test_nothing_is_left_in_the_temporary_folder() -> None:
    import sys

    assert not os.path.exists(sys.modules["rbcl._sodium"].lib_path)
    assert rbcl.crypto_core_ristretto255_random()  # and the library still works
