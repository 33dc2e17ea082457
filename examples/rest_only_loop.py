"""Report a training and follow the recommended threshold over REST alone: no gradwatch client."""

import json
import os
import random
import sys
from urllib.request import Request, urlopen

URL = os.environ.get("GRADWATCH_URL", "http://127.0.0.1:8642")
RUN = sys.argv[1] if len(sys.argv) > 1 else "rest-only"
threshold = 1.0
for step in range(100):
    norm = random.lognormvariate(-0.3, 0.25)  # your loop computes this, and clips at `threshold`
    report = {"step": step, "global_norm": norm, "loss": 3.0 / (1 + step / 20)}
    post = Request(f"{URL}/api/v1/runs/{RUN}/steps", json.dumps(report).encode(), method="POST")
    post.add_header("Content-Type", "application/json")
    with urlopen(post, timeout=10) as answer:
        advice = json.load(answer).get("recommendation") or {}
    threshold = advice.get("effective_threshold") or threshold
print(f"{RUN}: after 100 steps clip at {threshold:.3f}, because: {advice.get('reason')}")
