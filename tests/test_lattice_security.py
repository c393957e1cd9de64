"""The hardness of the lattice problem under the hint scheme, computed and not only quoted.

The primal attack (uSVP by BKZ with block size β on the embedding of m LWE samples with rescaled ternary secret, success
condition of Alkim, Ducas, Pöppelmann and Schwabe, "NewHope", USENIX Security 2016, section 6). Two cost models:
core-SVP, 2^(0.292 β) for one call of a classical sieve (Becker, Ducas, Gama and Laarhoven, SODA 2016), the most
conservative in use; and that of the Homomorphic Encryption Standard (Albrecht et al., 2018), 8d·2^(0.292 β + 16.4).
The standard's own points (table 1, uniform ternary secret, σ = 3.2, classical: at N = 4096, log2 q of 109 for 128 bits
and of 75 for 192) check the estimate first.
"""

import math

import pytest

from fedlearn.crypto.lwe import ERROR_VARIANCE
from fedlearn.kernels.negacyclic import N


def log2_root_hermite(beta: int) -> float:
    """log2 of δ(β), Chen's asymptotic formula."""
    return math.log2((math.pi * beta) ** (1 / beta) * beta / (2 * math.pi * math.e)) / (2 * (beta - 1))


def attack_wins(beta: int, n: int, log2_q: float, error: float, secret: float) -> bool:
    """Whether BKZ-β finds the secret for the best number of samples m ≤ 2n."""
    for m in range(n // 4, 2 * n, max(1, n // 64)):
        d = n + m + 1
        log2_volume = m * log2_q + n * math.log2(error / secret)
        found = math.log2(error) + math.log2(beta) / 2
        if found <= (2 * beta - d - 1) * log2_root_hermite(beta) + log2_volume / d:
            return True
    return False


def core_svp_bits(n: int, log2_q: float, error: float, secret: float = math.sqrt(2 / 3)) -> float:
    """log2 of the classical core-SVP cost of the primal attack."""
    low, high = 60, 4 * n
    while high - low > 1:
        middle = (low + high) // 2
        if attack_wins(middle, n, log2_q, error, secret):
            high = middle
        else:
            low = middle
    return 0.292 * high


def standard_bits(n: int, log2_q: float, error: float) -> float:
    """The same attack at the standard's cost (dimension d of about 2n)."""
    return core_svp_bits(n, log2_q, error) + 16.4 + math.log2(8 * 2 * n)


@pytest.mark.parametrize(
    ("n", "log2_q", "bits"), [(4096, 109, 128), (4096, 75, 192), (4096, 58, 256), (2048, 54, 128), (8192, 218, 128)]
)
def test_estimate_agrees_with_the_standard(n, log2_q, bits):
    assert standard_bits(n, log2_q, 3.2) == pytest.approx(bits, rel=0.03)


def test_our_parameters():
    assert N == 4096
    error = math.sqrt(ERROR_VARIANCE)
    assert core_svp_bits(N, 64, error) > 192
    assert standard_bits(N, 64, error) > 224
