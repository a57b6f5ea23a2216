"""How strong the step of a finished run was, told from a few of its images."""

from __future__ import annotations

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.image_samples import count_told
from imbalance_perturb.errors import ImbperturbError
from imbalance_perturb.inference.auto_eps import measure_strength
from imbalance_perturb.inference.pipeline import Pipeline
from imbalance_perturb.method.device_errors import is_out_of_memory

#: From here on the step of the log target is along the log prior (docs/theory.md; the paper's Fig. 2).
LARGE_TEMPERATURE = 100


def tell_strength(pipeline: Pipeline, images: ImageList, n_images: int) -> float | None:
    """How strong the step of a finished run was, as a share of the full correction, from a few of its images.

    ``None`` where the step is not along the log prior, or no image can tell.

    Args:
        pipeline: that the run was made with.
        images: of the run; only those are looked at that are drawn from all of the list.
        n_images: how many had a row.
    """
    d = pipeline.settings.debias
    along_prior = d.target == "log" and d.target_m is None and d.temperature >= LARGE_TEMPERATURE and d.steps == 1
    if not (pipeline.debiased.active and along_prior):
        return None
    strength = pipeline.strength
    if strength is None:
        few = count_told(n_images)
        try:
            strength = measure_strength(
                pipeline.model, images, pipeline.counts, d, pipeline.preprocessing, pipeline.execution, few
            )
        except (ImbperturbError, RuntimeError) as error:
            if isinstance(error, ImbperturbError) or is_out_of_memory(error):
                return None  # the rows are written; this line is not worth an error
            raise
    assert not isinstance(d.eps, str)
    return d.eps / strength.full_eps
