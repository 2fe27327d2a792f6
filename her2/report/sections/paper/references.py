"""Stage 2, report: the works that the draft of the methods names, and where they appeared."""

from collections.abc import Iterable

REFERENCES = {
    "Abdulsadig et al. 2024": "arXiv 2411.05028",
    "Bergstra and Bengio 2012": "Journal of Machine Learning Research 13",
    "Brier 1950": "Monthly Weather Review 78",
    "Cohen 1968": "Psychological Bulletin 70",
    "Crete et al. 2007": "SPIE 6492",
    "DeLong et al. 1988": "Biometrics 44",
    "Goode et al. 2013": "Journal of Pathology Informatics 4",
    "Guo et al. 2017": "ICML, PMLR 70",
    "Hesterberg 2015": "The American Statistician 69",
    "Holm 1979": "Scandinavian Journal of Statistics 6",
    "Howard et al. 2021": "Nature Communications 12",
    "Ilse et al. 2018": "ICML, PMLR 80",
    "Javed et al. 2022": "NeurIPS 35",
    "Kingma and Ba 2015": "ICLR",
    "Li et al. 2021": "CVPR",
    "Loshchilov and Hutter 2019": "ICLR",
    "Lu et al. 2021": "Nature Biomedical Engineering 5",
    "M\N{LATIN SMALL LETTER O WITH DIAERESIS}lder et al. 2021": "F1000Research 10",
    "Paszke et al. 2019": "NeurIPS 32",
    "Pedregosa et al. 2011": "Journal of Machine Learning Research 12",
    "Petsiuk et al. 2018": "BMVC",
    "Ruifrok and Johnston 2001": "Analytical and Quantitative Cytology and Histology 23",
    "Seabold and Perktold 2010": "9th Python in Science Conference",
    "Shao et al. 2021": "NeurIPS 34",
    "Shi et al. 2023": "Pattern Analysis and Applications 26",
    "Vickers and Elkin 2006": "Medical Decision Making 26",
    "Virtanen et al. 2020": "Nature Methods 17",
    "Wightman 2019": "PyTorch image models (timm), software",
    "Wilson 1927": "Journal of the American Statistical Association 22",
    "Zhang et al. 2016": "ECCV",
}
"""Authors and year, as the text names a work -> where it appeared."""


def references(paragraphs: Iterable[str]) -> str:
    """The list of the works that the paragraphs name, as one more paragraph."""
    text = " ".join(paragraphs)
    found = [f"{name}, {where}" for name, where in REFERENCES.items() if name in text]
    return f"References. {'; '.join(found)}."
