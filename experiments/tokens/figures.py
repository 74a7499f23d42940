"""Figures of the tokens experiment: functions from arrays to a matplotlib Figure."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.tokens.flows import Setting
from imr.lab.plotting import label_edges, legend_below, panels

TIME = r"time $t = \beta\, t_{\mathrm{imr}}$"
BETA = r"inverse temperature $\beta$"
_MISSING = {"facecolor": "0.8", "edgecolor": "0.55", "hatch": "////"}
_LINES = {"linewidth": 0.9, "alpha": 0.85}


def log_axis(axis, *names: str) -> None:
    """Logarithmic axes without minor ticks, which take longer to lay out than all the rest."""
    for name in names:
        axis.set(**{f"{name}scale": "log"})
        getattr(axis, f"{name}axis").minorticks_off()


def edges(centres) -> np.ndarray:
    """Borders of cells around values evenly spaced in log."""
    logs = np.log(np.asarray(centres))
    middle = (logs[1:] + logs[:-1]) / 2
    return np.exp([1.5 * logs[0] - logs[1] / 2, *middle, 1.5 * logs[-1] - logs[-2] / 2])


def phase_diagram(
    values: Mapping[str, np.ndarray], betas, ts, *, label: str, title: str, log: bool = False,
    limits: tuple[float, float], cmap: str, curves: Mapping[str, Any], curve_label: str = "",
) -> Any:  # fmt: skip
    """A quantity over time and inverse temperature: a panel for each flow, some with a curve."""
    from matplotlib.colors import LogNorm, Normalize

    rows, x, y = -(-len(values) // 2), edges(ts), edges(betas)
    size = (8.4, 2.7 * rows + 1.0)
    figure, axes = panels(rows, 2, size, title=title, sharex=True, sharey=True)
    norm, mesh = (LogNorm if log else Normalize)(*limits), None
    for axis, (name, panel) in zip(axes.flat, values.items(), strict=True):
        mesh = axis.pcolormesh(x, y, np.ma.masked_invalid(panel), norm=norm, cmap=cmap)
        if not np.isfinite(panel).all():
            axis.patch.set(**_MISSING)
        if name in curves:
            axis.plot(*curves[name], color="C2", linewidth=1.8, label=curve_label)
        log_axis(axis, "x", "y")
        axis.set(title=name, xlim=x[[0, -1]], ylim=y[[0, -1]])
    label_edges(axes, TIME, BETA)
    bar = figure.colorbar(mesh, ax=axes, label=label)
    if log:
        ticks = [tick for tick in 2 ** np.arange(10) if tick <= limits[1]]
        bar.set_ticks(ticks, labels=[str(tick) for tick in ticks])
        bar.minorticks_off()
    if not all(np.isfinite(panel).all() for panel in values.values()):
        axes[0, 0].fill([], [], label="not reached by more than half of the seeds", **_MISSING)
    if axes[0, 0].get_legend_handles_labels()[0]:
        legend_below(figure, axes[0, 0], 2, fontsize=9)
    return figure


def _by_beta(
    rows: Mapping[Setting, np.ndarray], betas, width: float, height: float, **options: Any
) -> tuple[Any, np.ndarray, Iterator[tuple[Any, np.ndarray]]]:
    """A row of panels for each flow, a panel for each inverse temperature; the panels' arrays."""
    size = (width * len(betas), height * len(rows) + 0.8)
    figure, axes = panels(len(rows), len(betas), size, **options)
    for line, setting in zip(axes, rows, strict=True):
        for axis, beta in zip(line, betas, strict=True):
            axis.set_title(rf"{setting.terms}, $\beta = {beta:.3g}$", fontsize=10)
    return figure, axes, zip(axes.flat, (a for row in rows.values() for a in row), strict=True)


def trajectories(rows: Mapping[Setting, np.ndarray], betas, ts, *, kind: str, title: str) -> Any:
    """Where tokens go; paths of shape (betas, times, n, d)."""
    angle = kind == "angle"
    figure, axes, arrays = _by_beta(rows, betas, 3.3, 2.9, title=title, sharex=angle)
    for axis, path in arrays:
        reached = np.isfinite(path).all(axis=(1, 2))
        _paths(axis, ts[reached], path[reached], kind)
    if angle:
        label_edges(axes, TIME, "angle of the token (rad)")
    else:
        label_edges(axes, "first coordinate", "second coordinate")
    return figure


def _paths(axis, ts, path, kind: str) -> None:
    """Tokens coloured by where they start; a dot is where one ends."""
    from matplotlib import colormaps

    angles = np.arctan2(path[..., 1], path[..., 0])
    colours = colormaps["turbo"](angles[0] / (2 * np.pi) + 0.5)
    if kind == "angle":
        # A line breaks where its token crosses from -pi to pi.
        angles[1:][np.abs(np.diff(angles, axis=0)) > np.pi] = np.nan
        for token, colour in zip(angles.T, colours, strict=True):
            axis.plot(ts, token, color=colour, **_LINES)
        log_axis(axis, "x")
        axis.set_yticks([-np.pi, 0, np.pi], ["−π", "0", "π"])
        axis.set_ylim(-1.05 * np.pi, 1.05 * np.pi)
        axis.grid(alpha=0.3)
        return
    if kind == "scaled":
        path = path / np.linalg.norm(path, axis=-1).max(axis=1)[:, None, None]
    for token, colour in zip(np.swapaxes(path, 0, 1), colours, strict=True):
        axis.plot(token[:, 0], token[:, 1], color=colour, **_LINES)
    dots = {"c": colours, "s": 16, "edgecolors": "black", "linewidths": 0.5, "zorder": 3}
    axis.scatter(path[-1, :, 0], path[-1, :, 1], **dots)
    circle = np.linspace(0, 2 * np.pi, 100)
    axis.plot(np.cos(circle), np.sin(circle), color="0.8", linewidth=0.6, zorder=0)
    limits, ticks = (-1.15, 1.15), [-1, 0, 1]
    axis.set(aspect="equal", xlim=limits, ylim=limits, xticks=ticks, yticks=ticks)


def cosine_histograms(rows: Mapping[Setting, np.ndarray], betas, ts, *, title: str) -> Any:
    """The share of pairs of tokens at each cosine over time, shape (betas, times, bins)."""
    from matplotlib.colors import LogNorm

    share, norm, mesh, bins = {"sharex": True, "sharey": True}, LogNorm(1e-3, 1, clip=True), None, 1
    figure, axes, arrays = _by_beta(rows, betas, 3.7, 2.6, title=title, **share)
    for axis, shares in arrays:
        bins = shares.shape[-1]
        cells = edges(ts), np.linspace(-1, 1, bins + 1), np.ma.masked_invalid(shares).T
        mesh = axis.pcolormesh(*cells, norm=norm, cmap="magma_r")
        log_axis(axis, "x")
    label_edges(axes, TIME, "cosine of two tokens")
    label = f"share of pairs in a bin of width {2 / bins:.3g}"
    figure.colorbar(mesh, ax=axes, extend="min", label=label)
    return figure


def energy_curves(
    places: Mapping[str, Mapping[Setting, np.ndarray]], betas, ts, *, label: str, title: str
) -> Any:
    """An energy along the flows, shape (betas, times), a panel for each place."""
    figure, axes = panels(1, len(places), (3.9 * len(places), 4.0), title=title)
    for axis, (place, changes) in zip(axes.flat, places.items(), strict=True):
        for setting, change in changes.items():
            style = "-" if setting.column_term else "--"
            for number, (beta, values) in enumerate(zip(betas, change, strict=True)):
                words = rf"$\beta = {beta:.3g}$, {setting.terms}"
                axis.plot(ts, values, style, color=f"C{number}", label=words)
        log_axis(axis, "x")
        axis.set(title=place, xlabel=TIME, ylabel=label)
        axis.axhline(0, color="0.6", linewidth=0.6, zorder=0)
        axis.grid(alpha=0.3)
    legend_below(figure, axes[0, 0], 3, fontsize=9)
    return figure
