"""Optical flow: files, errors, and what a model estimates between two images or along a video."""

from .error import end_point_error, flow_loss
from .estimate import VideoFlow, check_estimates_flow, estimate_flow, estimate_video_flow
from .files import known_flow, read_flo, write_flo
from .video import Frame, Video, open_frames, open_video

__all__ = [
    'Frame',
    'Video',
    'VideoFlow',
    'check_estimates_flow',
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
