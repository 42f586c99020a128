"""Make the S3 buckets that are named, where they are not there yet.

The endpoint and the keys come from the environment (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, …).
"""

import sys

import boto3

s3 = boto3.client("s3")
there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
for name in sys.argv[1:]:
    if name not in there:
        s3.create_bucket(Bucket=name)
    print(f"bucket {name}: {'there' if name in there else 'made'}")
