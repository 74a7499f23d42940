"""Figures of the tokens experiment: functions from arrays to a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imr.lab.plotting import new_figure

TIME = r"time $t = \beta\, t_{\mathrm{imr}}$"
BETA = r"inverse temperature $\beta$"
_GREY = "0.8"
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
    panels: Sequence[Mapping[str, Any]], betas, ts, *, label: str, title: str, log: bool = False,
    limits: tuple[float, float], columns: int = 2, cmap: str = "viridis",
) -> Any:  # fmt: skip
    """A quantity over time and inverse temperature, a panel for each flow."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.patches import Patch

    rows = -(-len(panels) // columns)
    figure = new_figure(figsize=(3.6 * columns + 1.2, 2.7 * rows + 1.0))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    norm = (LogNorm if log else Normalize)(*limits)
    handles, missing, mesh = {}, False, None
    for axis, panel in zip(axes.flat, panels, strict=True):
        values = np.ma.masked_invalid(panel["values"])
        axis.set_facecolor(_GREY)
        if values.mask.any():
            missing = True
            axis.patch.set(hatch="////", edgecolor="0.55")
        mesh = axis.pcolormesh(edges(ts), edges(betas), values, norm=norm, cmap=cmap)
        if "curve" in panel:
            (line,) = axis.plot(*panel["curve"], color="tab:red", linewidth=1.8)
            handles[panel["curve_label"]] = line
        log_axis(axis, "x", "y")
        axis.set_title(panel["title"])
        axis.set_xlim(edges(ts)[0], edges(ts)[-1])
        axis.set_ylim(edges(betas)[0], edges(betas)[-1])
    for axis in axes[-1]:
        axis.set_xlabel(TIME)
    for axis in axes[:, 0]:
        axis.set_ylabel(BETA)
    bar = figure.colorbar(mesh, ax=axes, label=label)
    if log:
        ticks = [tick for tick in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if tick <= limits[1]]
        bar.set_ticks(ticks, labels=[str(tick) for tick in ticks])
        bar.minorticks_off()
    if missing:
        handles["not reached by more than half of the seeds"] = Patch(
            facecolor=_GREY, edgecolor="0.55", hatch="////"
        )
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def trajectories(rows: Sequence[Mapping[str, Any]], betas, ts, *, kind: str, title: str) -> Any:
    """Where tokens go: a row of panels for each flow, a panel for each inverse temperature."""
    figure = new_figure(figsize=(3.1 * len(betas) + 0.6, 2.9 * len(rows) + 0.5))
    axes = figure.subplots(len(rows), len(betas), squeeze=False, sharex=kind == "angle")
    for line, row in zip(axes, rows, strict=True):
        for axis, beta, path in zip(line, betas, row["paths"], strict=True):
            reached = np.isfinite(path).all(axis=(1, 2))
            _paths(axis, ts[reached], path[reached], kind)
            axis.set_title(rf"{row['title']}, $\beta = {beta:.3g}$", fontsize=10)
    for axis in axes[:, 0]:
        axis.set_ylabel("angle of the token (rad)" if kind == "angle" else "second coordinate")
    for axis in axes[-1]:
        axis.set_xlabel(TIME if kind == "angle" else "first coordinate")
    figure.suptitle(title, fontsize=11)
    return figure


def _paths(axis, ts, path, kind: str) -> None:
    """Tokens coloured by where they start; a dot is where one ends."""
    from matplotlib import colormaps

    angles = np.arctan2(path[..., 1], path[..., 0])
    colours = colormaps["turbo"](angles[0] / (2 * np.pi) + 0.5)
    if kind == "angle":
        # A line breaks where its token crosses from -pi to pi.
        jumps = np.abs(np.diff(angles, axis=0)) > np.pi
        angles[1:][jumps] = np.nan
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
    axis.scatter(path[-1, :, 0], path[-1, :, 1], c=colours, s=16, edgecolors="black",
                 linewidths=0.5, zorder=3)  # fmt: skip
    axis.plot(*np.stack([np.cos(a := np.linspace(0, 2 * np.pi, 100)), np.sin(a)]), color="0.8",
              linewidth=0.6, zorder=0)  # fmt: skip
    axis.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=[-1, 0, 1],
             yticks=[-1, 0, 1])  # fmt: skip


def cosine_histograms(rows: Sequence[Mapping[str, Any]], betas, ts, *, title: str) -> Any:
    """The share of pairs of tokens at each cosine, over time."""
    from matplotlib.colors import LogNorm

    figure = new_figure(figsize=(3.3 * len(betas) + 1.2, 2.6 * len(rows) + 0.8))
    axes = figure.subplots(len(rows), len(betas), squeeze=False, sharex=True, sharey=True)
    bins = rows[0]["shares"].shape[-1]
    mesh = None
    for line, row in zip(axes, rows, strict=True):
        for axis, beta, shares in zip(line, betas, row["shares"], strict=True):
            mesh = axis.pcolormesh(
                edges(ts), np.linspace(-1, 1, bins + 1), np.ma.masked_invalid(shares).T,
                norm=LogNorm(1e-3, 1, clip=True), cmap="magma_r",
            )  # fmt: skip
            log_axis(axis, "x")
            axis.set_title(rf"{row['title']}, $\beta = {beta:.3g}$", fontsize=10)
    for axis in axes[:, 0]:
        axis.set_ylabel("cosine of two tokens")
    for axis in axes[-1]:
        axis.set_xlabel(TIME)
    figure.colorbar(mesh, ax=axes, extend="min",
                    label=f"share of pairs in a bin of width {2 / bins:.3g}")  # fmt: skip
    figure.suptitle(title, fontsize=11)
    return figure


def energy_curves(panels: Sequence[Mapping[str, Any]], ts, *, title: str) -> Any:
    """An energy along the flows, a panel for each place."""
    figure = new_figure(figsize=(3.9 * len(panels), 4.0))
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=True):
        for line in panel["lines"]:
            axis.plot(
                ts, line["values"], color=f"C{line['colour']}", label=line["label"],
                linestyle="--" if line["dashed"] else "-",
            )  # fmt: skip
        log_axis(axis, "x")
        axis.set(title=panel["title"], ylabel=panel["label"])
        axis.axhline(0, color="0.6", linewidth=0.6, zorder=0)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel(TIME)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    figure.suptitle(title, fontsize=11)
    return figure
