"""Generates the reference of the HTTP API: its routes, and the fields of its bodies."""

import json
from typing import Any

from cluster.reference_text import prose, table_row


def endpoints() -> str:
    """Every route with its first line."""
    from query.api.openapi import document
    from query.api.routes import ROUTERS

    lines = [
        "# HTTP routes",
        "",
        prose(
            "[HTTP API](http.md) describes bodies, fields, parameters and limits. A running "
            "gateway serves its OpenAPI document at `/openapi.json` and a page to try it at "
            "`/docs`."
        ),
        "",
    ]
    lines += ["| method | path | |", "|---|---|---|"]
    for path, methods in sorted(document(ROUTERS, {})["paths"].items()):
        for method, facts in methods.items():
            lines.append(table_row(method.upper(), f"`{path}`", facts["summary"]))
    return "\n".join(lines) + "\n"


def fields_of_bodies() -> str:
    """Every body of the HTTP API with its fields, from the schemas of the OpenAPI document."""
    from query.api.openapi import document
    from query.api.operations import SCHEMAS
    from query.api.routes import ROUTERS

    schemas = document(ROUTERS, {})["components"]["schemas"]
    lines = [
        "# HTTP bodies",
        "",
        prose(
            "Every body of the HTTP API, and every object in one, by its name in the OpenAPI "
            "document. [HTTP API](http.md) describes how they go together; "
            "[HTTP routes](http-routes.md) lists the routes. A bound that is a setting is given "
            "with its default. Null is the same as a missing field in a request."
        ),
        "",
    ]
    for name, schema in schemas.items():
        required = schema.get("required", [])
        lines += [f"## {name}", "", prose(schema["description"].split("\n\n")[0]), ""]
        lines += ["| field | type | meaning |", "|---|---|---|"]
        lines += [
            table_row(
                f"`{field}`" + (" (required)" if field in required else ""),
                _schema_type(each),
                each.get("description") or schemas[each["$ref"][len(SCHEMAS) :]]["description"],
            )
            for field, each in schema.get("properties", {}).items()
        ]
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


_BOUNDS_OF_SCHEMAS = {
    "minimum": "≥ {}",
    "maximum": "≤ {}",
    "minLength": "≥ {} characters",
    "maxLength": "≤ {} characters",
    "minItems": "≥ {} items",
    "maxItems": "≤ {} items",
    "x-setting": "`{}`",
}


def _schema_type(schema: dict[str, Any]) -> str:
    """Returns a JSON Schema's type, bounds and default in words."""
    if "anyOf" in schema:
        kinds = [_schema_type(each) for each in schema["anyOf"]]
        named = " or ".join(kind for kind in kinds if kind != "null")
        return f"{named}, or null" if "null" in kinds else named
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    kind = schema.get("type", "any")
    if kind == "array":
        kind = f"list of {_schema_type(schema.get('items', {}))}"
    bounds = [text.format(schema[key]) for key, text in _BOUNDS_OF_SCHEMAS.items() if key in schema]
    return f"{kind} ({', '.join(bounds)})" if bounds else kind
