"""A session on a cluster: what it has decides what runs, and only what was started here is ended here. No Ray runs."""

from collections.abc import Callable

import pytest
import ray

from cluster import session
from cluster.config import ClusterSettings
from cluster.session import ClusterError, check_workers_fit, num_scorers, ray_session, uses_gpu

QUIET = (
    "RAY_CHDIR_TO_TRIAL_DIR",
    "RAY_DATA_DISABLE_PROGRESS_BARS",
    "PYTHONWARNINGS",
    "TRANSFORMERS_VERBOSITY",
    "HF_HUB_DISABLE_PROGRESS_BARS",
)

SetResources = Callable[..., None]


@pytest.fixture
def cluster_has(monkeypatch: pytest.MonkeyPatch) -> SetResources:
    """Says what the cluster has, such as cluster_has(CPU=4.0, GPU=1.0)."""

    def have(**resources: float) -> None:
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)

    return have


@pytest.fixture
def ray_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of Ray, which is not up: init with its address, shutdown."""
    calls: list[str] = []
    for name in QUIET:
        monkeypatch.setenv(name, "mine")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **_: calls.append(f"init {address}"))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    return calls


@pytest.mark.parametrize(
    ("device", "num_workers", "num_gpus", "expected"),
    [
        ("auto", 2, 0, False),
        ("auto", 2, 1, False),
        ("auto", 2, 2, True),
        ("cpu", 2, 8, False),
        ("cuda", 2, 2, True),
    ],
)
def test_auto_takes_gpus_only_where_every_worker_gets_one(
    cluster_has: SetResources, device: str, num_workers: int, num_gpus: int, expected: bool
) -> None:
    cluster_has(CPU=8.0, GPU=float(num_gpus))
    settings = ClusterSettings.model_validate({"device": device, "num_workers": num_workers})
    assert uses_gpu(settings) is expected


def test_a_gpu_that_is_not_there_is_told_with_the_remedy(cluster_has: SetResources) -> None:
    cluster_has(CPU=8.0)
    with pytest.raises(
        ClusterError, match=r"cluster\.device is cuda, but the cluster has no GPU; set --cluster\.device"
    ):
        uses_gpu(ClusterSettings(device="cuda"))


def test_workers_that_fit_are_let_through(cluster_has: SetResources) -> None:
    cluster_has(CPU=4.0, GPU=2.0)
    check_workers_fit(ClusterSettings(num_workers=2, cpus_per_worker=2, device="cuda"))


def test_too_few_cores_are_told_with_both_numbers(cluster_has: SetResources) -> None:
    cluster_has(CPU=3.0)
    message = r"2 workers of 2 cores need 4 cores and the cluster has 3; lower cluster\.num_workers or"
    with pytest.raises(ClusterError, match=message):
        check_workers_fit(ClusterSettings(num_workers=2, cpus_per_worker=2))


def test_too_few_gpus_are_told_with_both_numbers(cluster_has: SetResources) -> None:
    cluster_has(CPU=8.0, GPU=1.0)
    message = r"2 workers need a GPU each and the cluster has 1; lower cluster\.num_workers"
    with pytest.raises(ClusterError, match=message):
        check_workers_fit(ClusterSettings(num_workers=2, device="cuda"))


def test_a_cluster_without_cores_fits_nobody(cluster_has: SetResources) -> None:
    cluster_has()
    with pytest.raises(ClusterError, match="the cluster has 0"):
        check_workers_fit(ClusterSettings())


@pytest.mark.parametrize(
    ("asked", "resources", "expected"),
    [
        (None, {"CPU": 4.0}, 4),
        (3, {"CPU": 4.0}, 3),
        (9, {"CPU": 4.0}, 4),
        (None, {"CPU": 8.0, "GPU": 2.0}, 2),
        (None, {"CPU": 8.0, "GPU": 1.0}, 8),
        (None, {"CPU": 0.5}, 1),
        (None, {}, 1),
    ],
)
def test_one_scorer_for_each_device_and_never_more(
    cluster_has: SetResources, asked: int | None, resources: dict[str, float], expected: int
) -> None:
    cluster_has(**resources)
    assert num_scorers(ClusterSettings(num_scorers=asked, num_workers=2)) == expected


def test_a_session_started_here_is_ended_here(ray_calls: list[str]) -> None:
    with ray_session(ClusterSettings()):
        assert ray_calls == ["init local"]
    assert ray_calls == ["init local", "shutdown"]


def test_a_session_is_ended_when_its_body_fails(ray_calls: list[str]) -> None:
    with pytest.raises(RuntimeError, match="the job"), ray_session(ClusterSettings()):
        raise RuntimeError("the job")
    assert ray_calls == ["init local", "shutdown"]


def test_a_session_already_open_is_used_and_left_running(ray_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with ray_session(ClusterSettings(address="auto")):
        pass
    assert ray_calls == []


def test_an_address_in_the_settings_comes_before_the_environment_s(
    ray_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    with ray_session(ClusterSettings()):
        pass
    with ray_session(ClusterSettings(address="auto")):
        pass
    assert ray_calls[::2] == ["init ray-head:6379", "init auto"]


@pytest.mark.usefixtures("ray_calls")
def test_what_a_person_set_in_the_environment_stays() -> None:
    with ray_session(ClusterSettings()):
        assert {session.os.environ[name] for name in QUIET} == {"mine"}
