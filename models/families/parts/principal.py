"""Principal components of vectors that pass by in batches, and the Gaussian they stand for.

y is a vector of D values, of which the fit split holds n; C is its covariance (divided by n - 1), with eigenvalues
l_1 >= l_2 >= ... and eigenvectors the columns of U. Probabilistic principal component analysis (Tipping and Bishop
1999) keeps q of them and gives what is left the same variance everywhere:

    C_q = U_q diag(l_1 .. l_q) U_q^T + s2 (I - U_q U_q^T),      s2 = (tr C - sum_{i<=q} l_i) / (D - q)

which is the likeliest Gaussian of that form. Up to `WHOLE_MOST` values C is gathered whole and taken apart; beyond, its
leading part is found by randomised subspace iteration over further passes (Halko et al. 2011, arXiv:0909.4061), for
which C is never written down.

q: as given; or the fewest that hold a share of tr C; or the largest log-likelihood less m/2 log n (BIC; the Laplace
estimate of Minka 2000 with its smaller terms left out), where the Gaussian has m = D + q D - q (q - 1) / 2 + 1 numbers
and

    log-likelihood = -n/2 (D log 2 pi + sum_{i<=q} log l_i + (D - q) log s2 + D)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

WHOLE_MOST = 1024  # values up to which the covariance is kept whole
COMPONENTS_MOST = 128  # that a rule chooses; more can be asked for
OVERSAMPLED = 32  # further directions that are iterated with those wanted, and then dropped
ITERATIONS = 6  # passes that sharpen a random subspace
NOISE_LEAST = 1e-6  # least s2, as a share of the mean variance: exact relations must not have an infinite density
REFINED_MOST = 4096  # vectors that loadings are refined on
REFINEMENTS = 50  # passes of expectation maximisation at most
REFINED = 1e-4  # relative change of s2 that ends it
SEED = 19990901

Vectors = Callable[[], Iterable[Tensor]]  # a fresh pass over (B, D) at each call


class Principal(nn.Module):
    """Learned once by `fit`; the number of components is settled then, unless it was given."""

    mean: Tensor  # (D,)
    axes: Tensor  # (D, q), orthonormal
    variance: Tensor  # (q,), l_1 .. l_q
    noise: Tensor  # (), s2

    def __init__(self, size: int, components: int = 0) -> None:
        """`components`: q, at most D - 1; 0 leaves it to `fit`."""
        super().__init__()
        assert components < max(size, 2)
        self.size = size
        # In double precision: where columns hang together exactly, what is left over is otherwise nothing but rounding.
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("noise", torch.ones((), dtype=torch.float64))
        self._keep(torch.eye(size, components), torch.ones(components))

    @property
    def components(self) -> int:
        """q, or 0 where it is not settled yet."""
        return len(self.variance)

    def fit(self, vectors: Vectors, share: float = 0.0, most: int = COMPONENTS_MOST, rounding: float = 0.0) -> None:
        """From clean vectors; missing values (NaN) are left out of every mean and product.

        Args:
            share: of tr C that the components hold together, where q is not given; 0 chooses q by BIC.
            most: components that a rule may choose.
            rounding: variance of what the values were rounded by, below which s2 does not go.
        """
        count, mean, covariance, total = _moments(vectors, self.size)
        # More components than this would describe single samples.
        most = max(1, min(self.size - 1, (count - 1) // 2, COMPONENTS_MOST, most))
        wanted = self.components or most
        if covariance is not None:
            values, axes = torch.linalg.eigh(covariance)
            values, axes = values.flip(0)[:wanted], axes.flip(1)[:, :wanted]
        else:
            values, axes = _leading(vectors, mean, wanted, count)
        values = values.clamp_min(0)
        least = max(NOISE_LEAST * max(total, 1e-12) / self.size, rounding)
        if not self.components:
            q = _by_share(values, total, share) if share else _by_bic(values, total, count, self.size, least)
        else:
            q = self.components
        rest = (total - float(values[:q].sum())) / max(self.size - q, 1)
        noise = max(rest, least)
        self.mean.copy_(mean)
        self.noise.fill_(noise)
        # No direction varies less than what is left over: of one value, or of samples that span fewer than q.
        self._keep(_oriented(axes[:, :q]), values[:q].clamp_min(noise))

    def refine(self, vectors: Vectors) -> None:
        """Expectation maximisation over what was observed, from what `fit` found, for vectors with missing values.

        With z~ = (z, 1), each value's loadings and mean solve a regression of their own on the latents' moments:
        (w_d, m_d) = (sum_n E[z~ z~^T])^-1 sum_n y_nd E[z~], over the n that hold value d.
        """
        q = self.components
        counted = sum(len(v) for v in vectors())
        stride = math.ceil(counted / REFINED_MOST)
        w, mean, noise, before = self.loadings(), self.mean.clone(), self.noise.clone(), math.inf
        unit = torch.eye(q, dtype=torch.float64)
        for _ in range(REFINEMENTS):
            left = torch.zeros(self.size, q + 1, q + 1, dtype=torch.float64)
            right = torch.zeros(self.size, q + 1, dtype=torch.float64)
            square, count = torch.zeros(self.size, dtype=torch.float64), torch.zeros(self.size, dtype=torch.float64)
            for batch in vectors():
                y = batch[::stride].double()
                mask = (~y.isnan()).double()
                y = torch.where(y.isnan(), 0.0, y)
                inverse = torch.linalg.inv((mask[:, None] * w.T) @ w + noise * unit)
                z = torch.einsum("bqr,bd,dr->bq", inverse, (y - mean) * mask, w)
                ones = torch.ones(len(y), 1, dtype=torch.float64)
                extended = torch.cat([z, ones], dim=1)
                moment = extended[:, :, None] * extended[:, None]
                moment[:, :q, :q] += noise * inverse
                left += torch.einsum("bd,bqr->dqr", mask, moment)
                right += torch.einsum("bd,bq->dq", y, extended)
                square += y.square().sum(0)
                count += mask.sum(0)
            # A value that was never observed keeps a mean and has no loadings.
            solved = torch.linalg.solve(left + 1e-9 * torch.eye(q + 1, dtype=torch.float64), right)
            w, mean = solved[:, :q], solved[:, q]
            fitted = torch.einsum("dq,dqr,dr->d", solved, left, solved)
            unexplained = (square - 2 * (solved * right).sum(1) + fitted).sum() / count.sum().clamp_min(1)
            noise = unexplained.clamp_min(self.noise * 1e-3)
            if abs(before - float(noise)) < REFINED * float(noise):
                break
            before = float(noise)
        axes, spread, _ = torch.linalg.svd(w, full_matrices=False)
        self.mean.copy_(mean)
        self.noise.copy_(noise)
        self._keep(_oriented(axes), spread.square() + noise)

    def scores(self, away: Tensor) -> Tensor:
        """y - mean (B, D) -> its components (B, q)."""
        return away @ self.axes

    def loadings(self) -> Tensor:
        """W = U_q (L_q - s2 I)^(1/2), (D, q), of y = W z + mean + noise with z ~ N(0, I)."""
        return self.axes * (self.variance - self.noise).clamp_min(0).sqrt()

    def _keep(self, axes: Tensor, variance: Tensor) -> None:
        self.register_buffer("axes", axes.to(self.mean))
        self.register_buffer("variance", variance.to(self.mean))


def _moments(vectors: Vectors, size: int) -> tuple[int, Tensor, Tensor | None, float]:
    """How many, their mean, their covariance where it is small enough to keep, and its trace; each entry over the
    vectors that hold both of its values."""
    whole = size <= WHOLE_MOST
    first = torch.zeros(size, dtype=torch.float64)
    square = torch.zeros(size, size, dtype=torch.float64) if whole else first.clone()
    count, known, shift, gaps = 0, first.clone(), first, False
    pairs = torch.zeros_like(square)
    for batch in vectors():
        values = batch.double()
        present = ~values.isnan()
        gaps = gaps or not bool(present.all())
        if not count:
            # Sums of squares about a first guess at the mean lose no digits to it.
            shift = values.nanmean(0).nan_to_num()
        mask = present.double()
        values = torch.where(present, values - shift, 0.0)
        count += len(values)
        known += mask.sum(0)
        first += values.sum(0)
        square += values.T @ values if whole else values.square().sum(0)
        if whole:
            pairs += mask.T @ mask if gaps else len(values)
    mean = first / known.clamp_min(1)
    if not whole:
        return count, mean + shift, None, float(((square - known * mean.square()) / (known - 1).clamp_min(1)).sum())
    covariance = (square - pairs * torch.outer(mean, mean)) / (pairs - 1).clamp_min(1)
    return count, mean + shift, covariance, float(covariance.trace())


def _leading(vectors: Vectors, mean: Tensor, wanted: int, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of the covariance and their eigenvectors (D, wanted)."""
    breadth = min(wanted + OVERSAMPLED, len(mean))
    basis = torch.randn(len(mean), breadth, generator=torch.Generator().manual_seed(SEED), dtype=torch.float32)
    centre = mean.float()
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(basis)[0]
        image = torch.zeros_like(basis)
        for batch in vectors():
            away = (batch.float() - centre).nan_to_num()
            image += away.T @ (away @ basis)
        basis = image
    # Rayleigh and Ritz: what C is within the last basis.
    basis = torch.linalg.qr(basis)[0]
    small = torch.zeros(breadth, breadth, dtype=torch.float64)
    for batch in vectors():
        scores = ((batch.float() - centre).nan_to_num() @ basis).double()
        small += scores.T @ scores
    values, turn = torch.linalg.eigh(small / max(count - 1, 1))
    return values.flip(0)[:wanted], (basis.double() @ turn.flip(1))[:, :wanted]


def _by_share(values: Tensor, total: float, share: float) -> int:
    enough = values.cumsum(0) >= share * total * (1 - 1e-12)
    return int(enough.to(torch.int8).argmax()) + 1 if bool(enough.any()) else len(values)


def _by_bic(values: Tensor, total: float, count: int, size: int, least: float) -> int:
    best, highest = 1, -math.inf
    eigenvalue_sum = logs = 0.0
    for q, value in enumerate(values.tolist(), start=1):
        eigenvalue_sum += value
        logs += math.log(max(value, least))
        noise = max((total - eigenvalue_sum) / max(size - q, 1), least)
        numbers = size + q * size - q * (q - 1) / 2 + 1
        fits = -0.5 * count * (logs + (size - q) * math.log(noise)) - 0.5 * numbers * math.log(max(count, 2))
        if fits > highest:
            best, highest = q, fits
    return best


def _oriented(axes: Tensor) -> Tensor:
    """Each axis with its largest entry positive: an eigenvector's sign is arbitrary, and must not be luck."""
    largest = axes.abs().argmax(0, keepdim=True)
    return axes * axes.gather(0, largest).sign()
