"""MLServer's runtime: what its batcher has joined becomes one run."""

from __future__ import annotations

from engine import Engine
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class Rows(MLModel):
    async def load(self) -> bool:
        extra = self.settings.parameters.extra
        self._output = extra["output"]
        self._engine = Engine(await get_model_uri(self.settings), extra["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        answer = NumpyCodec.encode_output(self._output, self._engine.run(rows))
        return InferenceResponse(model_name=self.name, outputs=[answer])
