"""The types of the names that `her2` imports when they are first used."""

from her2.cohort.manifest import Cohort as Cohort
from her2.cohort.reading import read_cohort as read_cohort
from her2.config import Config as Config
from her2.config import load_config as load_config
from her2.core.errors import SlideError as SlideError
from her2.core.errors import TileError as TileError
from her2.core.errors import UserError as UserError
from her2.embedding.encoder import FrozenEncoder as FrozenEncoder
from her2.embedding.encoder import load_encoder as load_encoder
from her2.embedding.one_slide import embed as embed
from her2.evaluation.given import Evaluation as Evaluation
from her2.evaluation.given import evaluate as evaluate
from her2.exchange.form import Given as Given
from her2.exchange.given import read_given as read_given
from her2.explanation.one_slide import draw_heatmap as draw_heatmap
from her2.frozen.loading import load_model as load_model
from her2.frozen.model import FrozenModel as FrozenModel
from her2.frozen.model import FrozenPrediction as FrozenPrediction
from her2.report.finished import Results as Results
from her2.slides.slide import Slide as Slide
from her2.slides.slide import open_slide as open_slide
from her2.storage.features import FeatureStore as FeatureStore
from her2.storage.features import open_store as open_store
from her2.tiling.one_slide import Tiles as Tiles
from her2.tiling.one_slide import tile as tile

__version__: str
__all__: list[str]
