"""``why``: the state of a service or an instance, in sentences."""

from __future__ import annotations

import argparse
import json

from supervisor.cli.client import Client
from supervisor.cli.failure import DONE


def run_why(arguments: argparse.Namespace) -> int:
    answer = Client(arguments).get(f"/v1/services/{arguments.name}/why")
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
        return DONE
    for i, instance in enumerate(answer["instances"]):
        if i:
            print()
        print("\n".join(instance["sentences"]))
        if instance["log"]:
            print("Its log ends:")
            print("\n".join(f"  {line}" for line in instance["log"]))
    return DONE
