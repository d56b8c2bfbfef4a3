"""A training run over its steps: reward, mean@k, pass@k, ever-solved prompts, diversity, the teacher's gap, its log."""

from __future__ import annotations

import polars as pl
import streamlit as st

from analysis.charts import curve_chart
from analysis.curves import CURVES
from app import data, parts, state


def show(study: data.Study) -> None:
    curves = data.curves(study)
    log = data.training_log(study)
    if curves.is_empty() and log.is_empty():
        st.info(
            "These rollouts have no training step: they were sampled from one policy. A training run "
            "(`python -m training.run`) writes the same tables with steps, and opens here."
        )
        return
    drawn = [name for name in [*CURVES, "gap"] if name in set(curves["curve"])] if not curves.is_empty() else []
    for start in range(0, len(drawn), 2):
        for place, name in zip(st.columns(2), drawn[start : start + 2], strict=False):
            with place:
                rows = curves.filter(pl.col("curve") == name)
                meaning = CURVES.get(name, "teacher − student: mean Δ of a rollout")
                st.subheader({"gap": "teacher-student gap"}.get(name, name))
                st.caption(f"{meaning}{' (nats per token)' if name == 'gap' else ''}")
                title = "nats per token" if name == "gap" else name
                parts.chart(curve_chart(rows, title=title), name, f"curve {name}", alt_text=f"{name} over steps")
    if drawn:
        with st.expander("The same as a table"):
            parts.table(curves, "training", "curves")
    training_log(log)


def training_log(log: pl.DataFrame) -> None:
    """What the trainer itself wrote, one series at a time."""
    st.subheader("The trainer's log")
    numbers = [name for name, kind in log.schema.items() if kind.is_numeric() and name not in ("step", "epoch")]
    if not numbers or "step" not in log.columns:
        st.caption("There is no metrics.jsonl with steps in this folder; `python -m training.run` writes it.")
        return
    name = state.choice(st, "Value", sorted(numbers), "value", default="reward")
    rows = log.select("step", value=pl.col(name).cast(pl.Float64), series=pl.lit(name), n=pl.lit(None, pl.Int64))
    rows = rows.filter(pl.col("value").is_not_null() & pl.col("value").is_not_nan())
    parts.chart(curve_chart(rows, title=name), name, "log", alt_text=f"{name} over steps")
    parts.table(log, "log", "log table")


parts.guarded("Training", show)
