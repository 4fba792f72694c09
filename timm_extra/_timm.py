"""The names timm keeps private and this package needs: the only file to mend when timm moves them."""

from timm.data.dataset_factory import _EVAL_SYNONYM as EVAL_WORDS
from timm.data.dataset_factory import _TRAIN_SYNONYM as TRAIN_WORDS
from timm.data.dataset_factory import _search_split as search_split
from timm.models._features import FeatureGetterNet, feature_take_indices
from timm.models._helpers import _torch_load as torch_load
from timm.models._hub import save_config_for_hf
from timm.models._input import update_model_args, update_model_input_size

__all__ = [
    'EVAL_WORDS',
    'TRAIN_WORDS',
    'FeatureGetterNet',
    'feature_take_indices',
    'save_config_for_hf',
    'search_split',
    'torch_load',
    'update_model_args',
    'update_model_input_size',
]
