"""Questions that arrive as a JSON body, checked by a model, refused as a problem."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from gradwatch_service.ingest.bodies import read_json

__all__ = ["documented", "read_as"]

Model = TypeVar("Model", bound=BaseModel)


def read_as(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """A dependency that reads the body, compressed or not, as the model.

    FastAPI's own body parameter knows neither compression nor the service's limits.
    """

    async def read(request: Request) -> Model:
        content = await read_json(request)
        try:
            return model.model_validate(content)
        except ValidationError as error:
            # Without the input: a NaN in it could not be written as JSON.
            found = error.errors(include_input=False, include_context=False, include_url=False)
            raise RequestValidationError(found) from None

    return read


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI document says about such a body."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
