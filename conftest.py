"""Where there is no GPU, Triton's interpreter stands in: chosen here, before anything imports triton. Ctrl-C works."""

import os
import signal
from pathlib import Path

if not any(Path(p).exists() for p in ('/dev/nvidia0', '/dev/kfd')):
    os.environ.setdefault('TRITON_INTERPRET', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells have it for what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
