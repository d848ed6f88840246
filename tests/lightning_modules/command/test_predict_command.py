"""``stllr predict`` on optical flow writes pictures of every window, whether or not the configuration asks for them."""

import pytest

from lightning_modules.command.cli import main

pytest.importorskip("torchvision", reason="the colours of flow come from torchvision")

CONFIG = """
model:
  class_path: OpticalFlowEstimator
  init_args:
    network: {{class_path: SpikingFireNet, init_args: {{channels: 2}}}}
    loss: {{class_path: {loss}}}
data:
  class_path: lightning_modules.data.flow.SimulatedFlowDataModule
  init_args:
    settings: {{size: [8, 8], windows: 2, steps: 2, layers: 0, pictures: false}}
    num_train: 1
    num_val: 1
    num_test: 1
    bins: 2
    windows_per_batch: 2
    cache_dir: {folder}/cache
trainer:
  accelerator: cpu
  logger: {{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {folder}}}}}
  enable_progress_bar: false
  callbacks: {callbacks}
"""


@pytest.mark.parametrize(
    ("loss", "callbacks", "drawn"),
    [
        ("ContrastMaximisationLoss", "null", {"000000.png", "000001.png", "test_0.gif"}),
        ("PhotometricLoss", "[{class_path: FlowPictures, init_args: {windows: 1}}]", {"000000.png"}),
    ],
)
def test_predict_draws(tmp_path, capsys, loss, callbacks, drawn):
    config = tmp_path / "flow.yaml"
    config.write_text(CONFIG.format(loss=loss, folder=tmp_path, callbacks=callbacks))
    assert main(["predict", "--config", str(config)]) == 0
    assert {path.name for path in tmp_path.rglob("flow/test_0/*")} == drawn
    assert not list(tmp_path.rglob("predictions.pt"))


def test_a_wrong_loss_gets_the_names_of_those_there_are(tmp_path, capsys):
    config = tmp_path / "flow.yaml"
    config.write_text(CONFIG.format(loss="ContrastLoss", folder=tmp_path, callbacks="null"))
    with pytest.raises(SystemExit):
        main(["predict", "--config", str(config)])
    message = capsys.readouterr().err
    assert "There is no class 'ContrastLoss'" in message
    assert "ContrastMaximisationLoss, PhotometricLoss, EndpointErrorLoss" in message
