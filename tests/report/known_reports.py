"""Reports made from spectra that are known: Lanczos on a diagonal matrix, in numpy."""

from functools import lru_cache

import numpy as np

from hesscli.report.schema import (
    Band,
    Block,
    Cost,
    Coupling,
    Data,
    Eigenpair,
    Errors,
    Loss,
    Metric,
    Model,
    Operator,
    Preflight,
    Report,
    Spectrum,
    Warning_,
)

DIMENSION = 4000
OUTLIERS = (500.0, 320.0, 90.0, 41.0, 12.0, 3.0, -50.0, -6.0)


def semicircle(count: int, radius: float) -> np.ndarray:
    """Quantiles of the semicircle law."""
    grid = np.linspace(-1, 1, 20001)
    mass = 0.5 + (grid * np.sqrt(1 - grid**2) + np.arcsin(grid)) / np.pi
    return radius * np.interp((np.arange(count) + 0.5) / count, mass, grid)


def eigenvalues() -> np.ndarray:
    """A bulk of width 1e-3 beside outliers from -50 to 500."""
    return np.concatenate([semicircle(DIMENSION - len(OUTLIERS), 1e-3), OUTLIERS])


def lanczos(values: np.ndarray, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, weights and residuals of one probe, reorthogonalised twice."""
    generator = np.random.default_rng(seed)
    vector = generator.normal(size=len(values))
    vector /= np.linalg.norm(vector)
    basis, alphas, betas = [vector], [], []
    for _ in range(steps):
        image = values * basis[-1]
        alphas.append(image @ basis[-1])
        for _ in range(2):
            image = image - np.asarray(basis).T @ (np.asarray(basis) @ image)
        betas.append(float(np.linalg.norm(image)))
        basis.append(image / betas[-1])
    nodes, rotation = np.linalg.eigh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
    return nodes, rotation[0] ** 2, np.abs(betas[-1] * rotation[-1])


def spectrum(values: np.ndarray, *, probes: int = 6, steps: int = 60, band: bool = True) -> Spectrum:
    """The quadrature of a diagonal matrix, with a crude band around its distribution."""
    rows = [lanczos(values, steps, seed) for seed in range(probes)]
    found = None
    if band:
        scale = 1e-5
        ends = np.arcsinh(np.asarray([values.min(), values.max()]) * 1.2 / scale)
        x = scale * np.sinh(np.linspace(*ends, 121))
        shares = [np.array([weights[nodes <= point].sum() for point in x]) for nodes, weights, _ in rows]
        step = [np.array([weights[nodes <= point][-1:].sum() for point in x]) for nodes, weights, _ in rows]
        high = np.mean(shares, axis=0)
        low = np.clip(high - np.mean(step, axis=0), 0, 1)
        found = Band(x=x.tolist(), low=low.tolist(), high=np.clip(high, 0, 1).tolist())
    return Spectrum(
        nodes=[row[0].tolist() for row in rows],
        weights=[row[1].tolist() for row in rows],
        residuals=[row[2].tolist() for row in rows],
        dimension=len(values),
        band=found,
    )


def metric(value: float | None, half: float | None = None, **errors: float) -> Metric:
    """A figure with a symmetric interval."""
    if value is None:
        return Metric(value=None, reason="not measured by this probe")
    ci = None if half is None else (value - half, value + half)
    stderr = None if half is None else half / 1.96
    return Metric(value=value, stderr=stderr, ci=ci, errors=Errors(**errors), n={"probes": 6})


def report(command: str = "density", **changes: object) -> Report:
    """A report of the command, complete but for what the command measures."""
    content: dict[str, object] = {
        "status": "ok",
        "command": command,
        "run_id": "7c1f09ab",
        "created": "2026-01-02T03:04:05Z",
        "seconds": 131.4,
        "model": Model(
            id="org/model-70m",
            revision="step3000",
            class_name="Qwen3ForCausalLM",
            num_parameters=DIMENSION,
            num_selected=DIMENSION,
            dtype="float32",
            attention="eager",
            tied=True,
        ),
        "data": Data(
            id="demo",
            split="train",
            sequences=64,
            tokens=32704,
            loss_terms=32640,
            max_length=512,
            packed=True,
            fingerprint="sha256:00",
        ),
        "loss": Loss(value=3.41, stderr=0.05),
        "operator": Operator(
            kind="hessian",
            product="double-backward",
            why="fits in memory",
            params=["*"],
            placement="single",
            batch_size=8,
            preflight=Preflight(symmetry=1.2e-8, repeat=0.0, linearity=3e-8),
        ),
        "estimator": {"probes": 6, "steps": 60, "seed": 0},
        "cost": Cost(matvecs=360, seconds_per_matvec=0.061, gradient_seconds=0.03),
        "environment": {"hess": "0.1.0"},
    }
    return Report.model_validate({**content, **changes}, by_name=True)


@lru_cache
def known_spectrum() -> Spectrum:
    """The quadrature of the known eigenvalues."""
    return spectrum(eigenvalues())


def density_report(**changes: object) -> Report:
    """A density of the known spectrum."""
    values = eigenvalues()
    metrics = {
        "lambda_max": metric(500.0, 0.9, numeric=0.02, probe=0.1, data=0.45, precision=0.01),
        "lambda_min": metric(-50.0, 0.3, numeric=0.1),
        "trace": metric(float(values.sum()), 180.0, probe=90.0),
        "mean_eigenvalue": metric(float(values.mean()), 0.045, probe=0.0225),
        "negative_mass": metric(0.499, 0.011, probe=0.005),
        "effective_rank": metric(None),
    }
    return report("density", **{"spectrum": known_spectrum().model_copy(deep=True), "metrics": metrics, **changes})


def topk_report(**changes: object) -> Report:
    """Eigenpairs of both ends, one of which has not converged."""
    ordered = sorted(OUTLIERS, reverse=True)
    pairs = [Eigenpair(value=value, residual=1e-3, converged=True, bar=1e-4) for value in ordered]
    pairs[5] = Eigenpair(value=3.0, residual=0.8, converged=False)
    metrics = {
        "lambda_max": metric(500.0, 0.9, numeric=1e-4, data=0.45),
        "lambda_min": metric(-50.0, 0.3, numeric=1e-4, data=0.15),
        "spectral_radius": metric(500.0, 0.9, numeric=1e-4, data=0.45),
        "max_stable_learning_rate": metric(0.004, 7e-6, data=3.6e-6),
    }
    return report("topk", **{"eigenpairs": pairs, "metrics": metrics, **changes})


def blockdiag_report(count: int = 32, **changes: object) -> Report:
    """Blocks like those of a deep network with long names, and their coupling."""
    generator = np.random.default_rng(0)
    names = ["model.embed_tokens", *[f"model.layers.{index}" for index in range(count - 2)], "lm_head"]
    cosines = np.clip(generator.normal(0.4, 0.12, count), 0.05, 0.95)
    blocks = [
        Block(
            name=name,
            num_parameters=3_152_384,
            metrics={
                "relative_error": metric(float(np.sqrt(1 - cosine**2)), 0.05, probe=0.025),
                "cosine": metric(float(cosine), 0.08, probe=0.04),
            },
        )
        for name, cosine in zip(names, cosines, strict=True)
    ]
    raw = generator.uniform(0.2, 0.8, (count, count))
    norms = (raw + raw.T) / 2 + np.eye(count)
    coupling = Coupling(blocks=names, frobenius=norms.tolist(), stderr=(0.05 * norms).tolist())
    metrics = {
        "relative_error": metric(float(np.sqrt(1 - cosines**2).mean()), 0.021, probe=0.01),
        "cosine": metric(float(cosines.mean()), 0.03, probe=0.015),
        "off_block_fraction": metric(0.86, 0.02, probe=0.01),
    }
    return report("blockdiag", **{"blocks": blocks, "coupling": coupling, "metrics": metrics, **changes})


def trace_report(count: int = 8, **changes: object) -> Report:
    """Traces of blocks of both signs."""
    blocks = [
        Block(
            name=f"transformer.h.{index}.mlp",
            num_parameters=100,
            metrics={"trace": metric(float(40 * np.cos(index)), 6.0, probe=3.0)},
        )
        for index in range(count)
    ]
    metrics = {
        "trace": metric(910.0, 60.0, probe=30.0, data=12.0),
        "mean_eigenvalue": metric(0.2275, 0.015, probe=0.0075),
        "frobenius_norm": metric(611.0, 22.0, probe=11.0),
    }
    warnings = [Warning_(code="few_probes", text="6 probes: the interval uses the t distribution")]
    return report("trace", **{"blocks": blocks, "metrics": metrics, "warnings": warnings, **changes})
