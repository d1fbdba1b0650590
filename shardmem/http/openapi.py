"""GET /openapi.json: what operations.py declares, with what answers.py says of the answers."""

from __future__ import annotations

import re
from typing import Any

import shardmem
from shardmem.http.answers import COMPONENTS
from shardmem.http.operations import COMMANDS, READS, Command, Read

WHY = {
    "400": "The body makes no sense",
    "401": "Not with the token",
    "403": "Not for you, or the port has no http_token",
    "404": "There is none of that number or name",
    "409": "It cannot be done",
    "413": "The body is too long",
}


def openapi(tcp: bool) -> dict[str, Any]:
    """OpenAPI 3.0 of all of it, as it is where it was asked for: on TCP much needs the token, on the unix socket nothing."""
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
            "description": "The control API of one engine, on its unix socket and on http_port",
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
    done = {"description": "What was done", "content": {"application/json": {"schema": _schema(command.answer)}}}
    return {
        "operationId": re.sub(r"\W", "_", command.name),
        "summary": command.help,
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
