package ossd

import (
	"encoding/base64"
	"encoding/xml"
	"net/http"
	"strconv"
)

// apiError is an answer other than success.
type apiError struct {
	Status        int
	Code, Message string
	Header        http.Header // sent along; may be nil
	StringToSign  string      // what we signed, for a signature that differs
}

func fail(status int, code, message string) *apiError {
	return &apiError{Status: status, Code: code, Message: message}
}

// internal hides our own trouble's details (paths) from the client.
func internal(error) *apiError {
	return fail(500, "InternalError", "We encountered an internal error. Please try again.")
}

var (
	errNoBucket  = fail(404, "NoSuchBucket", "The specified bucket does not exist.")
	errNoKey     = fail(404, "NoSuchKey", "The specified key does not exist.")
	errNoVersion = fail(404, "NoSuchVersion", "The specified version does not exist.")
	errNoUpload  = fail(404, "NoSuchUpload", "The specified upload does not exist.")
	errACL       = fail(403, "AccessDenied", "You have no right to access this object because of bucket acl.")
	errForbidden = fail(403, "AccessDenied", "You are not authorized to do this action.")
	errNotImpl   = fail(501, "NotImplemented", "A header or parameter you provided implies functionality that is not implemented.")
	errPrecond   = fail(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
	errUnchanged = fail(304, "NotModified", "Not Modified")
	errExists    = fail(409, "FileAlreadyExists", "The object you specified already exists and can not be overwritten.")
	errXML       = fail(400, "MalformedXML", "The XML you provided was not well-formed.")
	errMethod    = fail(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")
	errBody      = fail(400, "IncompleteBody", "You did not provide the number of bytes specified by the Content-Length header.")
	errDigest    = fail(400, "InvalidDigest", "The Content-MD5 you specified was invalid.")
	errTooLarge  = fail(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size.")
)

// detail is the EC of an error; only those that clients check are known.
func detail(code string) string {
	switch code {
	case "NoSuchBucket":
		return "0015-00000101"
	case "NoSuchKey":
		return "0026-00000001"
	}
	return "0000-00000000"
}

func (e *apiError) write(w http.ResponseWriter, r *http.Request, requestID string) {
	h := w.Header()
	for k, v := range e.Header {
		h[k] = v
	}
	if e.Status != http.StatusNotModified {
		h.Del("Etag")
	}
	if e.Status == http.StatusNotModified || e.Code == "" {
		w.WriteHeader(e.Status)
		return
	}
	type body struct {
		XMLName                              xml.Name `xml:"Error"`
		Code, Message, RequestId, HostId, EC string
		StringToSign                         string `xml:",omitempty"`
	}
	raw, err := xml.Marshal(body{Code: e.Code, Message: e.Message, RequestId: requestID, HostId: r.Host, EC: detail(e.Code), StringToSign: e.StringToSign})
	if err != nil {
		w.WriteHeader(e.Status)
		return
	}
	raw = append([]byte(xml.Header), raw...)
	h.Set("X-Oss-Ec", detail(e.Code))
	h.Set("Content-Type", "application/xml")
	h.Set("Content-Length", strconv.Itoa(len(raw)))
	if r.Method == http.MethodHead {
		h.Set("X-Oss-Err", base64.StdEncoding.EncodeToString(raw))
	}
	w.WriteHeader(e.Status)
	if r.Method != http.MethodHead {
		w.Write(raw)
	}
}

// writeXML answers 200 with v.
func writeXML(w http.ResponseWriter, v any) *apiError {
	raw, err := xml.Marshal(v)
	if err != nil {
		return internal(err)
	}
	raw = append([]byte(xml.Header), raw...)
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.Write(raw)
	return nil
}
