"""The user's configuration: records, the strict parser, and the file that is watched for edits.

Must not know systemd or HTTP. Start reading at `records`.
"""
