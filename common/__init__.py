# Whichever file of the project comes first, this runs before the libraries that report to their
# makers are imported; a person who has set a variable is obeyed.
import os

# ONNX Runtime reports from 1.29 on, and keeps an id of the machine in ~/.cache/Microsoft
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# with each download of weights huggingface_hub tells what else is installed
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
