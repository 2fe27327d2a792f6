"""Before and after tiling: whether an external cohort has patients of the development cohort."""

from her2.cohort.manifest import Cohort


def shared_patients(development: Cohort, external: Cohort) -> list[str]:
    """Return a problem for each patient id that both manifests have."""
    known: dict[str, str] = {row.patient_id: row.slide_id for row in development.rows}
    found: dict[str, str] = {row.patient_id: row.slide_id for row in external.rows}
    return [
        f"{patient}: {found[patient]} and, in development, {known[patient]}"
        for patient in sorted(found.keys() & known.keys())
    ]
