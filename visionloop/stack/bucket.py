"""Makes the bucket of the object store: `python -m visionloop.stack.bucket`, run by the stack once S3 is well."""

import sys

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from visionloop.settings import Settings, load_settings

REGION = "us-east-1"
"""S3 clients must name one; SeaweedFS takes any."""


def make_bucket(settings: Settings) -> None:
    """Make the bucket of `settings.store` where it is missing. The credentials are found as AWS's tools find them."""
    bucket = settings.store.removeprefix("s3://").split("/")[0]
    patience = Config(retries={"max_attempts": 8, "mode": "standard"}, connect_timeout=3, read_timeout=10)
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint, region_name=REGION, config=patience)
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError:
        client.create_bucket(Bucket=bucket)


if __name__ == "__main__":
    try:
        make_bucket(load_settings())
    except (BotoCoreError, ClientError) as error:
        sys.exit(str(error))
