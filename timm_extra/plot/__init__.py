"""Pictures: what a model predicts and looks at, and how training went. Needs matplotlib (extra `plot`)."""

from .attention import class_token_attention, decoder_attention, latent_attention, lca_attention, plot_attention
from .islands import LevelIslands, island_sheet, pca_rgb, plot_islands
from .sheets import class_token_sheet, latent_sheet, learning_curve, new_figure, prediction_sheet

__all__ = [
    'LevelIslands',
    'class_token_attention',
    'class_token_sheet',
    'decoder_attention',
    'island_sheet',
    'latent_attention',
    'latent_sheet',
    'lca_attention',
    'learning_curve',
    'new_figure',
    'pca_rgb',
    'plot_attention',
    'plot_islands',
    'prediction_sheet',
]
