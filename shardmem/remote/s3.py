"""Snapshots in an object store that speaks S3. Credentials, region and endpoint are what boto3 finds: AWS_* variables
(AWS_ENDPOINT_URL for another store than Amazon's), its configuration files, the role of the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from shardmem.errors import ConfigError
from shardmem.remote.targets import RemoteError

MOST_NAMES = 1000  # that are deleted in one request
CONNECT, READ = 5.0, 30.0  # seconds
ATTEMPTS = 3


class Bucket:
    def __init__(self, url: str, bucket: str, prefix: str) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise ConfigError(
                f"remote={url!r} needs boto3, which is not installed", hint="`pip install 'shardmem[s3]'`"
            ) from None
        self.url, self._bucket, self._prefix = url, bucket, f"{prefix}/" if prefix else ""
        # a session of its own: the default one is not for several threads
        self._client = boto3.session.Session().client(
            "s3",
            config=Config(
                connect_timeout=CONNECT, read_timeout=READ, retries={"mode": "standard", "total_max_attempts": ATTEMPTS}
            ),
        )

    def put(self, name: str, path: str) -> None:
        with self._explained(f"{name} cannot be written"):
            self._client.upload_file(path, self._bucket, self._prefix + name)

    def get(self, name: str, path: str) -> None:
        with self._explained(f"{name} cannot be read"):
            self._client.download_file(self._bucket, self._prefix + name, path)

    def names(self, prefix: str) -> list[str]:
        found = []
        with self._explained("its content cannot be listed"):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                found += [each["Key"].removeprefix(self._prefix) for each in page.get("Contents", ())]
        return found

    def delete(self, names: Iterable[str]) -> None:
        keys = [{"Key": self._prefix + name} for name in names]
        with self._explained("a snapshot cannot be deleted"):
            for at in range(0, len(keys), MOST_NAMES):
                some = {"Objects": keys[at : at + MOST_NAMES], "Quiet": True}
                for fault in self._client.delete_objects(Bucket=self._bucket, Delete=some).get("Errors", ()):
                    raise RemoteError(f"{self.url}: {fault['Key']} cannot be deleted: {fault['Message']}")

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
            raise RemoteError(f"{self.url}: {what}: {error}") from error
