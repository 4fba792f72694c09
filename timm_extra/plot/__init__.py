"""Pictures: what a model predicts and looks at, and how training went.

All but those of optical flow need matplotlib (extra `plot`).
"""

from .attention import class_token_attention, decoder_attention, latent_attention, lca_attention, plot_attention
from .flow import FlowFiles, check_flow_files, colour_wheel, flow_colours, plot_flow, write_flow_image
from .islands import LevelIslands, island_sheet, pca_rgb, plot_islands
from .sheets import class_token_sheet, latent_sheet, learning_curve, new_figure, prediction_sheet

__all__ = [
    'FlowFiles',
    'LevelIslands',
    'check_flow_files',
    'class_token_attention',
    'class_token_sheet',
    'colour_wheel',
    'decoder_attention',
    'flow_colours',
    'island_sheet',
    'latent_attention',
    'latent_sheet',
    'lca_attention',
    'learning_curve',
    'new_figure',
    'pca_rgb',
    'plot_attention',
    'plot_flow',
    'plot_islands',
    'prediction_sheet',
    'write_flow_image',
]
