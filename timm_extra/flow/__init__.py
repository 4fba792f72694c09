"""Optical flow: files, errors, and what a model estimates between two images or along a video."""

from .error import end_point_error, flow_loss
from .estimate import VideoFlow, check_estimates_flow, estimate_flow, estimate_video_flow
from .field import as_flow, known_flow
from .files import read_flo, write_flo
from .video import Frame, Video, check_frames, open_frames, open_video

__all__ = [
    'Frame',
    'Video',
    'VideoFlow',
    'as_flow',
    'check_estimates_flow',
    'check_frames',
    'end_point_error',
    'estimate_flow',
    'estimate_video_flow',
    'flow_loss',
    'known_flow',
    'open_frames',
    'open_video',
    'read_flo',
    'write_flo',
]
