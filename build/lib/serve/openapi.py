"""The gateway's paths as an OpenAPI document, for programs that look for one.

Bodies of the engine's routes stand as objects of any form: what is in them is the engine's to say,
and passes as it comes.
"""

import re
from typing import Any

from serve import __version__
from serve.routes import ADMIN, FORWARDED, OPEN, OWN, SPEECH, Route

ANY_OBJECT = {"type": "object", "additionalProperties": True}
# POST without anything to say.
BODILESS = frozenset(("/ping", "/v1/responses/{response_id}/cancel"))
BRACED = re.compile(r"{(\w+)}")
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": ["string", "integer", "null"]},
                "param": {"type": ["string", "null"]},
                "src": {"enum": ["gateway", "engine"]},
            },
        }
    },
}
WANTED = {
    "type": "object",
    "required": ["variant"],
    "additionalProperties": False,
    "properties": {"variant": {"type": "string", "minLength": 1, "maxLength": 200}},
}


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for route in (*FORWARDED, *OWN, *ADMIN):
        paths[route.path] = {
            method.lower(): _operation(route, method)
            for method in route.methods
            if method != "HEAD"
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Preheat", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, method: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": f"{method.lower()}{re.sub('[^a-z0-9]+', '_', route.path)}",
        "responses": {
            "200": {"description": "The answer; a stream where one was asked for."},
            "default": {
                "description": "Why not.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if method == "POST" and route.path not in BODILESS:
        schema = WANTED if route in ADMIN else ANY_OBJECT
        kind = "multipart/form-data" if route in SPEECH else "application/json"
        made["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
    if names := BRACED.findall(route.path):
        made["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if route not in OPEN:
        made["security"] = [{"key": []}, {}]
    return made
