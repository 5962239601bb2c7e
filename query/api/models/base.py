"""Bases of the HTTP API's models, bounds that are settings, and examples made from fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticUndefined, core_schema

from vicinage.errors import Refused
from vicinage.settings import Settings

SETTING: Final = "x-setting"
"""Key of a JSON Schema: the setting that its upper bound is read from."""
_BOUND: Final[Mapping[str, str]] = {
    "integer": "maximum",
    "string": "maxLength",
    "array": "maxItems",
    "object": "maxProperties",
}


class RequestModel(BaseModel):
    """Base of request bodies: unknown fields are refused, and types are strict.

    Null is the same as a missing field.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=True)


class ResponseModel(BaseModel):
    """Base of response bodies: a client must accept fields that are added later."""

    model_config = ConfigDict(strict=True, frozen=True)


@dataclass(frozen=True, slots=True)
class AtMost:
    """An upper bound that is a setting: of a number, or of the length of a text or a list.

    The length of a text counts bytes of UTF-8; its JSON Schema states the same number of
    characters, because JSON Schema cannot count bytes. Validation uses the setting's default.
    """

    setting: str

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Adds the check to the type's own."""
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Adds the bound and the name of its setting."""
        found = handler(schema)
        return {**found, _BOUND[found["type"]]: default_of(self.setting), SETTING: self.setting}

    def _checked(self, value: Any) -> Any:
        size = value
        if isinstance(value, str):
            size = len(value.encode())
        elif not isinstance(value, int):
            size = len(value)
        if size > (most := default_of(self.setting)):
            raise Refused(f"{size} is over {self.setting}, which is {most}", limit=most)
        return value


def default_of(setting: str) -> int:
    """Returns the default of the setting."""
    model: Any = Settings
    for name in setting.split("."):
        field = model.model_fields[name]
        model = field.annotation
    return int(field.default)


def bound_by(schema: Any, values: Mapping[str, int]) -> Any:
    """Returns the JSON Schema with the bounds that this gateway's settings have."""
    if isinstance(schema, list):
        return [bound_by(each, values) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: bound_by(each, values) for key, each in schema.items()}
    if isinstance(setting := made.get(SETTING), str) and setting in values:
        made[_BOUND[made["type"]] if "type" in made else "default"] = values[setting]
    return made


def own_examples(model: type[BaseModel]) -> list[dict[str, Any]]:
    """Returns the examples that the model's own configuration states."""
    extra: Any = model.model_config.get("json_schema_extra") or {}
    return list(extra.get("examples", ()))


def example_of(model: type[BaseModel]) -> dict[str, Any]:
    """Returns an example of the model.

    It is the model's own example, else it is made from the first examples of its fields.
    """
    if examples := own_examples(model):
        return examples[0]
    return {
        field.alias or name: _example(field)
        for name, field in model.model_fields.items()
        if field.is_required() or field.examples
    }


def _example(field: FieldInfo) -> Any:
    if field.examples:
        return field.examples[0]
    if field.default is not PydanticUndefined:
        return field.default
    return _example_of_type(field.annotation)


def _example_of_type(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return example_of(annotation)
    inner = [each for each in get_args(annotation) if each is not NoneType]
    found = _example_of_type(inner[-1])
    if getattr(annotation, "__origin__", None) in (list, tuple):
        return [found]
    return {"acme": found} if getattr(annotation, "__origin__", None) is dict else found
