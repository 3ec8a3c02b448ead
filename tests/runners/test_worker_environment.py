"""A worker gets of the environment what it needs, by name: no secret of its client's lives on in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Cli

from diffpipe.cache.store import Store
from diffpipe.runners.worker import lifecycle
from diffpipe.runners.worker.environment import of_worker

SECRETS = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_KEY", "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_ACCESS_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "GITHUB_TOKEN",
    "https_proxy", "HTTPS_PROXY", "SSH_AUTH_SOCK", "DATABASE_URL", "FSSPEC_S3_SECRET", "HF_ENDPOINT",
)  # fmt: skip


def test_secrets_stay_behind_and_what_decides_comes_along() -> None:
    needed = {"PATH": "/bin", "HOME": "/home/a", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0", "LC_ALL": "C"}
    assert of_worker({**dict.fromkeys(SECRETS, "marked"), **needed}) == needed


def test_folders_from_the_current_one_on_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = of_worker({"PYTHONPATH": f"plugins{os.pathsep}/opt/x", "HF_HOME": "hub"})
    assert found == {"PYTHONPATH": f"{tmp_path}/plugins{os.pathsep}/opt/x", "HF_HOME": f"{tmp_path}/hub"}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="asks Linux for a process's environment")
def test_a_worker_has_no_secret(cli: Cli) -> None:
    cli("build", "demo", check=True)
    marked = {name: "marked-secret" for name in SECRETS if "proxy" not in name.lower() and name != "HF_ENDPOINT"}
    words = ("generate", "demo", "--prompt", "a fox", "--num-inference-steps", 1, "--keep-warm", "1m")
    cli.fresh(*words, env=marked, check=True)
    try:
        (worker,) = (one.status for one in lifecycle.running(Store(cli.home)))
        assert worker
        environment = Path(f"/proc/{worker.pid}/environ").read_bytes()
        assert b"DIFFPIPE_HOME=" in environment
        assert b"marked-secret" not in environment
    finally:
        cli("worker", "stop", "--all", check=True)
