"""Another project with six small templates, for deploying to moto's server."""

NETWORK = """\
Parameters:
  VpcCidr: {Type: String, Default: 10.0.0.0/16}
Resources:
  Vpc:
    Type: AWS::EC2::VPC
    Properties: {CidrBlock: !Ref VpcCidr}
Outputs:
  VpcId: {Description: The VPC, Value: !Ref Vpc}
  Cidr: {Value: !Ref VpcCidr}
"""

DATABASE = """\
Parameters:
  VpcId: {Type: String}
  Password: {Type: String, NoEcho: true, Default: generated-elsewhere}
Resources:
  Group:
    Type: AWS::EC2::SecurityGroup
    Properties: {GroupDescription: database, VpcId: !Ref VpcId}
  Host:
    Type: AWS::SSM::Parameter
    Properties: {Name: /shop/host, Type: String, Value: db.internal}
Outputs:
  GroupId: {Value: !GetAtt Group.GroupId}
"""

LAMBDA = """\
Parameters:
  CodeBucket: {Type: String}
  CodeKey: {Type: String}
  Architecture: {Type: String, Default: arm64, AllowedValues: [arm64, x86_64]}
  GroupId: {Type: String}
Resources:
  Code:
    Type: AWS::SSM::Parameter
    Properties: {Name: /shop/code, Type: String, Value: !Sub "${CodeBucket}/${CodeKey}"}
Outputs:
  Code: {Description: Where the code is, Value: !Sub "s3://${CodeBucket}/${CodeKey}"}
"""

WEB = """\
Parameters:
  CertificateArn: {Type: String, Default: ""}
  VpcId: {Type: String}
Resources:
  Cluster:
    Type: AWS::ECS::Cluster
    Properties: {ClusterName: shop}
"""

WORKER = """\
Parameters:
  VisibilityTimeout: {Type: Number, Default: 60}
  GroupId: {Type: String}
Resources:
  Queue:
    Type: AWS::SQS::Queue
    Properties: {QueueName: shop-jobs, VisibilityTimeout: !Ref VisibilityTimeout}
Outputs:
  QueueUrl: {Value: !Ref Queue}
"""

DASHBOARD = """\
Parameters:
  QueueUrl: {Type: String}
Resources:
  Shown:
    Type: AWS::SSM::Parameter
    Properties: {Name: /shop/dashboard, Type: String, Value: !Ref QueueUrl}
"""

ENVIRONMENT = """\
[stack]
name_prefix = "shop"
region = "eu-central-1"
code_bucket = "shop-code"

# Not in the order of deployment, which follows from the references.
[dashboard]
QueueUrl = "{worker.QueueUrl}"

[worker]
VisibilityTimeout = 90
GroupId = "{database.GroupId}"

[web]
VpcId = "{network.VpcId}"

[lambda]
GroupId = "{database.GroupId}"

[database]
VpcId = "{network.VpcId}"

[network]
VpcCidr = "10.7.0.0/16"
"""

FILES = {
    "pyproject.toml": "",
    "infra/network.yaml": NETWORK,
    "infra/database.yaml": DATABASE,
    "infra/lambda.yaml": LAMBDA,
    "infra/web.yaml": WEB,
    "infra/worker.yaml": WORKER,
    "infra/dashboard.yaml": DASHBOARD,
    "infra/environments/dev.toml": ENVIRONMENT,
    "infra/environments/prod.toml": ENVIRONMENT.replace(
        'code_bucket = "shop-code"', 'code_bucket = "shop-code"\ntermination_protection = true'
    ),
}
STACK_NAME = r"[a-zA-Z][-a-zA-Z0-9]*"
"""The pattern of a stack's name in the description of the service."""
ORDER = ["network", "web", "database", "worker", "dashboard", "lambda"]
"""As the references and then the file say."""
