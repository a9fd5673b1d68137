from __future__ import annotations

from pathlib import Path

import pytest
from recipes import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the tiny recipes name."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(autouse=True)
def without_plot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the curves takes longer than the tiny runs; tests that look at them ask for `curves`."""
    if "curves" not in request.fixturenames:
        monkeypatch.setattr("triform.train.loop.plot_curves", lambda folder: folder)


@pytest.fixture
def curves() -> None:
    """Ask for the plot."""
