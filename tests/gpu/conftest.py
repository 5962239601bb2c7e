"""Collects tests of FAISS's GPU wheel if it is installed, and of a device if there is one.

`make test-gpu` installs the wheel.
"""

import faiss

collect_ignore = []
if not hasattr(faiss, "StandardGpuResources"):
    collect_ignore += ["test_wheel.py", "test_on_device.py", "test_without_device.py"]
elif faiss.get_num_gpus() == 0:
    collect_ignore += ["test_on_device.py"]
else:
    collect_ignore += ["test_without_device.py"]
