"""schemathesis, where it is installed: requests made from the description get the statuses, types
and bodies that the description names.
"""

import pytest
import tiny_bundle as tiny
from starlette.testclient import TestClient

from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.predictor import Predictor

schemathesis = pytest.importorskip("schemathesis")
