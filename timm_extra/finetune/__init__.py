"""Fine-tuning of any timm model on folders whose names are classes."""

from .config import FinetuneConfig
from .data import Labelled, folder_data
from .loop import Finetuned, finetune

__all__ = ['FinetuneConfig', 'Finetuned', 'Labelled', 'finetune', 'folder_data']
