"""Make what the other services find there: S3 buckets and the studies' tables. Again is no harm.

    python prepare.py BUCKET…

The bucket's endpoint and keys come from the environment (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID,
…), the database's URL from RESURGE_STUDIES, its password from PGPASSWORD.
"""

import os
import sys

import boto3
from optuna.storages import RDBStorage

s3 = boto3.client("s3")
there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
for name in sys.argv[1:]:
    if name not in there:
        s3.create_bucket(Bucket=name)
    print(f"bucket {name}: {'there' if name in there else 'made'}")

# optuna-dashboard ends at once where the tables are missing.
RDBStorage(os.environ["RESURGE_STUDIES"])
print("tables of the studies: there")
