"""GET /openapi.json: the operations of operations.py, with the answers of answers.py."""

from __future__ import annotations

import re
from typing import Any

import shardmem
from shardmem.http.answers import COMPONENTS
from shardmem.http.operations import COMMANDS, READS, Command, Read

WHY = {
    "400": "Invalid body",
    "401": "Missing or wrong token",
    "403": "Forbidden: wrong user or Host, or no http_token is configured",
    "404": "Not found",
    "409": "The engine cannot do this now",
    "413": "Body too large",
}


def openapi(tcp: bool) -> dict[str, Any]:
    """OpenAPI 3.0 for the connection that asks: on TCP much needs the token, on the unix socket nothing does."""
    paths: dict[str, Any] = {read.path: {"get": _read(read, tcp)} for read in READS}
    paths |= {f"/{command.name}": {"post": _command(command, tcp)} for command in COMMANDS}
    components: dict[str, Any] = {"schemas": COMPONENTS}
    if tcp:
        components["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer", "description": "http_token of the engine"}
        }
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "shardmem",
            "version": shardmem.__version__,
            "description": "The control API of one engine, on its unix socket and on http_port.",
        },
        "paths": paths,
        "components": components,
    }


def _read(read: Read, tcp: bool) -> dict[str, Any]:
    answers = {
        "200": {"description": read.help, "content": {kind: {"schema": _schema(read.answer)} for kind in read.kinds}}
    }
    if read.refused:
        answers["503"] = {**answers["200"], "description": read.refused}
    guarded = tcp and read.private
    return {
        "operationId": re.sub(r"\W", "", read.path) or "page",
        "summary": read.help,
        **(
            {
                "parameters": [
                    {"name": name, "in": "path", "required": True, "schema": schema}
                    for name, schema in read.values.items()
                ]
            }
            if read.values
            else {}
        ),
        **_guarded(guarded),
        "responses": answers | _problems("403", *read.problems, *["401"] * guarded),
    }


def _command(command: Command, tcp: bool) -> dict[str, Any]:
    done = {"description": "Done", "content": {"application/json": {"schema": _schema(command.answer)}}}
    return {
        "operationId": re.sub(r"\W", "_", command.name),
        "summary": command.help,
        **({"description": command.more} if command.more else {}),
        **_guarded(tcp),
        "requestBody": {
            "required": bool(command.required or command.one_of),
            "content": {"application/json": {"schema": command.schema, "example": command.example}},
        },
        "responses": {"200": done} | _problems("400", "403", "409", "413", *["401"] * tcp),
    }


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"} if name in COMPONENTS else {"type": name}


def _guarded(by_token: bool) -> dict[str, Any]:
    return {"security": [{"token": []}]} if by_token else {}


def _problems(*codes: str) -> dict[str, Any]:
    return {
        code: {"description": WHY[code], "content": {"application/json": {"schema": _schema("Problem")}}}
        for code in sorted(codes)
    }
