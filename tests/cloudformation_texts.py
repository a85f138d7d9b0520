"""Parts of CloudFormation templates, for the budget's tests."""

DATABASE = """
  Db:
    Type: AWS::RDS::DBInstance
    Properties: {Engine: postgres, DBInstanceClass: db.m7g.large}
"""
ECS = """
  Task:
    Type: AWS::ECS::TaskDefinition
    Properties:
      ContainerDefinitions:
        - Name: app
          Image: example.org/app:1
          Command: [%(command)s]
          Environment:
            - {Name: DATABASE_HOST, Value: !GetAtt Db.Endpoint.Address}
            %(environment)s
  Web:
    Type: AWS::ECS::Service
    Properties:
      TaskDefinition: !Ref Task
      DesiredCount: 2
      %(service)s
"""


def stack(*resources, parameters=""):
    head = f"Parameters:\n{parameters}" if parameters else ""
    return f"AWSTemplateFormatVersion: '2010-09-09'\n{head}\nResources:\n" + "\n".join(resources)


def ecs(command="gunicorn, -w, 2, app", environment="- {Name: X, Value: y}", service=""):
    return ECS % {"command": command, "environment": environment, "service": service}


def function(name="Fn", extra="", target="lambda_warm"):
    return f"""
  {name}:
    Type: AWS::Lambda::Function
    Properties:
      Code: {{S3Bucket: b, S3Key: k}}
      {extra}
      Environment:
        Variables:
          POOLKIT_TARGET: {target}
          POOLKIT_ENVIRONMENT: prod
          DATABASE_HOST: !GetAtt Db.Endpoint.Address
"""
