"""An application that uses the AWS SDK for C++ as Apache Arrow brings it along, with its defaults: see ../src/sdk.rs for
what is printed.

Arrow calls nothing but S3. The S3 of the tests names its buckets after the caller: what STS would say, and the key that
the request was signed with.
"""

from application import main
from pyarrow.fs import FileSelector, S3FileSystem


class Caller:
    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.files = None

    def call(self):
        # Making it already asks for credentials, so it belongs to what is reported.
        if self.files is None:
            self.files = S3FileSystem(endpoint_override=self.endpoint, region="us-east-1")
        arn, key = [bucket.path for bucket in self.files.get_file_info(FileSelector(""))]
        return {"arn": arn, "access_key_id": key}


main(Caller)
