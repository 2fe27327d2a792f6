"""Stage 2, report: the works that the draft of the methods names, and where they appeared."""

from collections.abc import Iterable

from her2.config.heads import HEADS
from her2.filters.registry import LISTED
from her2.metrics import all_metrics

_OWN = {
    "Abdulsadig et al. 2024": "arXiv 2411.05028",
    "Bergstra and Bengio 2012": "Journal of Machine Learning Research 13",
    "DeLong et al. 1988": "Biometrics 44",
    "Goode et al. 2013": "Journal of Pathology Informatics 4",
    "Guo et al. 2017": "ICML, PMLR 70",
    "Hesterberg 2015": "The American Statistician 69",
    "Holm 1979": "Scandinavian Journal of Statistics 6",
    "Howard et al. 2021": "Nature Communications 12",
    "Kingma and Ba 2015": "ICLR",
    "Loshchilov and Hutter 2019": "ICLR",
    "M\N{LATIN SMALL LETTER O WITH DIAERESIS}lder et al. 2021": "F1000Research 10",
    "Paszke et al. 2019": "NeurIPS 32",
    "Pedregosa et al. 2011": "Journal of Machine Learning Research 12",
    "Petsiuk et al. 2018": "BMVC",
    "Ruifrok and Johnston 2001": "Analytical and Quantitative Cytology and Histology 23",
    "Shi et al. 2023": "Pattern Analysis and Applications 26",
    "Vickers and Elkin 2006": "Medical Decision Making 26",
    "Virtanen et al. 2020": "Nature Methods 17",
    "Wightman 2019": "PyTorch image models (timm), software",
    "Wilson 1927": "Journal of the American Statistical Association 22",
    "Zhang et al. 2016": "ECCV",
}
_HEADS = {work: where for head in HEADS.values() for work, where in head.citations.items()}
_FILTERS = {work: where for one in LISTED for work, where in one.references.items()}
_METRICS = {work: where for metric in all_metrics() for work, where in metric.references.items()}
REFERENCES = dict(sorted({**_OWN, **_HEADS, **_FILTERS, **_METRICS}.items()))
"""Authors and year, as the text names a work -> where it appeared; heads, filters and metrics
declare their own."""


def references(paragraphs: Iterable[str]) -> str:
    """The list of the works that the paragraphs name, as one more paragraph."""
    text = " ".join(paragraphs)
    found = [f"{name}, {where}" for name, where in REFERENCES.items() if name in text]
    return f"References. {'; '.join(found)}."
